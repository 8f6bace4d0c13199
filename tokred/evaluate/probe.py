"""A linear probe: what a linear classifier reads from features that were not made for it."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad


class LinearProbe:
    """Logistic regression on standardised features, fitted whole by L-BFGS; the same features give the same probe.

    Args:
        features: [N, D] to learn from.
        labels: int64 [N].
        decay: weight of the squared weights, against the mean cross-entropy.

    >>> features = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    >>> LinearProbe(features, torch.tensor([0, 0, 1, 1])).predict(features).tolist()
    [0, 0, 1, 1]
    """

    def __init__(self, features: Tensor, labels: Tensor, decay: float = 1e-3):
        self.mean, self.std = features.mean(0), features.std(0).clamp(min=1e-6)
        inputs = self._inputs(features)
        self.weight = torch.zeros(inputs.shape[1], int(labels.max()) + 1, requires_grad=True)
        solver = torch.optim.LBFGS([self.weight], max_iter=200, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            solver.zero_grad()
            value = cross_entropy(inputs @ self.weight, labels) + decay * self.weight[:-1].square().sum()
            value.backward()
            return value

        with torch.enable_grad():
            solver.step(loss)  # type: ignore[arg-type]  # its stub wants a float
        self.weight.requires_grad_(False)

    def predict(self, features: Tensor) -> Tensor:
        """Return the likeliest class [N] of features [N, D]."""
        return (self._inputs(features) @ self.weight).argmax(1)

    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        """Return the percent of features [N, D] that get their label [N]."""
        return 100 * (self.predict(features) == labels).double().mean().item()

    def _inputs(self, features: Tensor) -> Tensor:
        return pad((features.float() - self.mean) / self.std, (0, 1), value=1.0)
