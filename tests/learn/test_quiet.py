import optuna

from tokred.learn.quiet import quiet, quiet_loading


def test_optuna_speaks_as_before_afterwards():
    before = optuna.logging.get_verbosity()
    with quiet():
        assert optuna.logging.get_verbosity() == optuna.logging.WARNING
    assert optuna.logging.get_verbosity() == before


def test_transformers_draws_no_bars_while_it_loads_and_may_again_afterwards():
    from transformers.utils import logging

    with quiet_loading():
        assert not logging.is_progress_bar_enabled()
    assert logging.is_progress_bar_enabled()
