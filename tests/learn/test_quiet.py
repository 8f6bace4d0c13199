import optuna

from tokred.learn.quiet import quiet


def test_optuna_speaks_as_before_afterwards():
    before = optuna.logging.get_verbosity()
    with quiet():
        assert optuna.logging.get_verbosity() == optuna.logging.WARNING
    assert optuna.logging.get_verbosity() == before
