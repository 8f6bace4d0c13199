"""A process that joins a search: ``joiner.py FOLDER MODEL DATA ROLE``.

The first schedule of both takes until the other has begun one, so that both certainly take part. A "victim" hangs in
its second schedule until it is killed; a "worker" leaves it enough to do until then.
"""

import sys
import time
from pathlib import Path

from tokred.learn import SearchSpec, run_search
from tokred.learn.objective import Objective

TRIALS = 8


def spec_of(model: str, data: str) -> SearchSpec:
    return SearchSpec(
        model, "tome", data, quality="agreement", budget_low="50%", budget_high="90%", batch_size=12, threads=1
    )


def main() -> None:
    folder, model, data, role = sys.argv[1:]
    begun: list[int] = []

    def wait(self, schedule, report):
        begun.append(len(begun))
        Path(folder, f"{role}.{len(begun)}").touch()
        other = Path(folder, f"{'worker' if role == 'victim' else 'victim'}.{min(len(begun), 2)}")
        while not other.exists() or (role == "victim" and len(begun) == 2):
            time.sleep(0.05)
        return measure(self, schedule, report)

    measure, Objective.__call__ = Objective.__call__, wait
    run_search(spec_of(model, data), folder, trials=TRIALS)


if __name__ == "__main__":
    main()
