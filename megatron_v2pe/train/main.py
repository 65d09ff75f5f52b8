"""A training run, in the order in which it happens; what each part is built of stands in `train/setup.py`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from megatron.core import parallel_state

from megatron_v2pe.base import exit_status
from megatron_v2pe.base.config_tree import to_dict
from megatron_v2pe.base.logging import FILE_ONLY, get_logger, keep_log, setup_logging
from megatron_v2pe.base.run_lock import FolderLock
from megatron_v2pe.checkpoint import store
from megatron_v2pe.checkpoint.adapters import check_resumed
from megatron_v2pe.checkpoint.folder import HF_FOLDER, newest, offer_others
from megatron_v2pe.checkpoint.growth import grown_files
from megatron_v2pe.checkpoint.resolve import resume_folder
from megatron_v2pe.checkpoint.trained import start_config
from megatron_v2pe.data.image_operations import NORMALISATION
from megatron_v2pe.device import launch, watchdog
from megatron_v2pe.device.rank_errors import raise_on_all_ranks, run_on_first_rank
from megatron_v2pe.errors import CheckpointError, V2PEError
from megatron_v2pe.models.flops import StepCost
from megatron_v2pe.models.micro_batch import PixelSettings
from megatron_v2pe.parallel import topology
from megatron_v2pe.train import between_steps, setup
from megatron_v2pe.train.adapter_start import RunTokens, begin_with
from megatron_v2pe.train.after_step import AfterSteps
from megatron_v2pe.train.config import CONFIG_FILE, ExperimentConfig
from megatron_v2pe.train.data_feed import DataFeed
from megatron_v2pe.train.ddp import wrap
from megatron_v2pe.train.header import Start
from megatron_v2pe.train.health.attention_logits import AttentionLogits
from megatron_v2pe.train.health.monitor import HealthMonitor
from megatron_v2pe.train.health.part_norms import PartsOfGradients
from megatron_v2pe.train.health.profiler import StepProfiler
from megatron_v2pe.train.loop import Trainer
from megatron_v2pe.train.memory import shortage_explained
from megatron_v2pe.train.new_places import NewPlaces
from megatron_v2pe.train.new_tokens import check_goes_on
from megatron_v2pe.train.optimizer_step import build_optimizer, build_scheduler
from megatron_v2pe.train.signals import StopRequest
from megatron_v2pe.train.training_run import Loaded, TrainingRun, log_folder
from megatron_v2pe.train.writers import MetricsLog, check_writers

LOG = "train.log"
"""Name of the log beside the metrics."""
_log = get_logger(__name__)


def run(config: ExperimentConfig, notices: Sequence[str] = ()) -> int:
    """Train as configured, resuming where the run's folder holds a checkpoint; return the exit status.

    Args:
        config: settings of the run, checked (`ExperimentConfig.validate`) for the ranks there are.
        notices: what the command line was answered with, for the log that is kept.
    """
    world = launch.read_environment()
    setup_logging(world.rank)
    config = config.with_recorded_strides()
    check_writers(config.logging)
    device = setup.choose_device(config, world.local_rank)
    logs, minutes = log_folder(config), config.parallel.distributed_timeout_minutes
    made = _new_places(config.checkpoint.save, logs, world.rank)
    with (
        launch.joined(world, device, minutes, logs, topology.destroy),
        made.removed_if_refused(),
        _locked(config.checkpoint.save),
        _kept(logs, world.rank),
    ):
        for notice in notices:
            _log.warning("%s", notice, extra=FILE_ONLY)
        return _train(setup.prepare(config, world, device), made)


def _new_places(save: str | None, logs: Path | None, rank: int) -> NewPlaces:
    """Return what the first rank makes before the run begins."""
    if rank:
        return NewPlaces((), ())
    folders = [folder for folder in (Path(save) if save else None, logs) if folder is not None]
    return NewPlaces(folders, () if logs is None else (logs / LOG,))


def _train(run: TrainingRun, made: NewPlaces) -> int:
    """Load the model, open the data, train to the last step or a request to stop; return the exit status.

    What was `made` by then stays from the moment on at which nothing of the settings can be refused any more.
    """
    run = between_steps.with_validation_data(run)
    loaded = _load(run)
    if run.config.validation.only:
        made.keep()
        return _validate(run, loaded)
    run = setup.with_counted_steps(run, loaded.loader_state, loaded.iteration)
    train, settings = run.config.train, run.config.optimizer
    scheduler = build_scheduler(loaded.optimizer, settings, train.train_steps)
    scheduler.step(increment=loaded.iteration)
    watchdog.progress("opening the data")
    feed = setup.open_feed(run, loaded.loader_state)
    last = min(train.train_steps, train.exit_step or train.train_steps)
    place = run.config.logging, run.logs, run.world.rank, loaded.iteration, last, run.where
    setup.introduce(run, feed, Start(run.start, loaded.resumed, loaded.iteration, run.logs))
    health = HealthMonitor(run.config.health, settings.clip_grad, run.logs, loaded.iteration)
    after = between_steps.after_steps(run, loaded, feed, health)
    stated = start_config(run.start) if run.growth is None else grown_files(run.start, run.growth)
    stated = {**stated, **setup.adapter_file(run)}
    made.keep()
    metrics = raise_on_all_ranks(lambda: MetricsLog(*place, settings=to_dict(run.config)))
    stop = StopRequest()
    after.listen(lambda: stop.asked[0])
    trainer = Trainer(
        model=loaded.wrapped,
        optimizer=loaded.optimizer,
        scheduler=scheduler,
        feed=feed,
        device=run.device,
        cutter=setup.cutter_of(run),
        pixels=PixelSettings(run.device.torch_device, run.dtype, NORMALISATION[run.config.data.normalize_type]),
        num_micro_batches=train.micro_batches(parallel_state.get_data_parallel_world_size()),
        seed=train.seed,
        cost=StepCost.of(run.model, run.budget.learning),
        metrics=metrics,
        save=lambda step: _save(run, loaded, feed, after, stated, step),
        save_interval=run.config.checkpoint.save_interval,
        peak_tflops=setup.peak_of_device(run),
        explain_shortage=partial(shortage_explained, budget=run.budget),
        after=after,
        health=health,
        profiler=StepProfiler(run.config.health, run.logs, run.world.rank),
        parts=PartsOfGradients(loaded.model, loaded.optimizer),
        logits=AttentionLogits(loaded.model, run.model.llm.num_layers, run.config.health.attention_interval),
    )
    try:
        done = trainer.run(loaded.iteration, train.train_steps, train.exit_step, stop)
    finally:
        metrics.close()
        stop.restore()
    _report(run, metrics.rates(), loaded.iteration, done)
    return stop.status if done < train.train_steps else exit_status.FINISHED


def _validate(run: TrainingRun, loaded: Loaded) -> int:
    """Compute the validation loss of the weights that are loaded, tell it, and end."""
    values = between_steps.validation_of(run, loaded).losses(loaded.iteration)
    assert values is not None, "nobody can ask it to stop"
    where = loaded.resumed or run.start
    _log.info("%s: %s", where, ", ".join(f"{name} {value:.8g}" for name, value in values.items()))
    return exit_status.FINISHED


def _load(run: TrainingRun) -> Loaded:
    """Build the model and its optimizer, with the weights of the start, or all of a checkpoint of this run."""
    parallel, settings = run.config.parallel, run.config.checkpoint
    watchdog.progress("building the model")
    model = setup.build_stage(run)
    watchdog.progress("loading the checkpoint")
    resumed = resume_folder(settings.save, settings.load, settings.resume)
    raise_on_all_ranks(lambda: check_resumed(resumed, run.start, run.adapters))
    if resumed is None or run.adapters is not None:  # a checkpoint with adapters does not hold what stays as it is
        store.load_model(run.start, model, settings.verify, run.growth)
    if resumed is None and run.adapters is not None and (start := run.config.adapter.start) is not None:
        plan, tokens = run.adapters, RunTokens.of(run.tokenizer, run.model, run.budget.learning, run.table_rows)
        raise_on_all_ranks(lambda: begin_with(start, model, plan, run.model, run.start, settings.verify, tokens))
    if resumed is not None:
        found = resumed
        raise_on_all_ranks(lambda: check_goes_on(run.start / HF_FOLDER, run.growth, found, run.config.model.add_tokens))
    wrapped = wrap(model, parallel, run.groups, run.device.torch_device)
    optimizer = build_optimizer(
        wrapped,
        run.config.optimizer,
        run.dtype,
        parallel.use_distributed_optimizer,
        parallel.overlap_param_gather,
        run.groups,
    )
    if resumed is None:
        return Loaded(model, wrapped, optimizer, None, 0, None, {})
    try:
        learned_only, rows = run.adapters is not None, run.table_rows
        state = store.load_training(resumed, model, optimizer, settings.verify, learned_only, rows)
    except CheckpointError as error:
        raise CheckpointError(f"{error}{offer_others(resumed)}") from error
    return Loaded(model, wrapped, optimizer, resumed, state.iteration, state.loader, state.after_steps)


def _save(
    run: TrainingRun, loaded: Loaded, feed: DataFeed, after: AfterSteps, stated: Mapping[str, str], iteration: int
) -> None:
    """Write a checkpoint, its configuration and tokenizer from where the run started, `stated` in place of its own."""
    settings = run.config.checkpoint
    if settings.save is None:
        return
    state = store.TrainingState(iteration, feed.state_dict(), to_dict(run.config), after.state_dict())
    source = run.start
    if not (source / HF_FOLDER).is_dir():  # one of this run's own that was too old to keep: later ones have its files
        source = newest(Path(settings.save)) or source
    files = {CONFIG_FILE: run.config.to_yaml(), **stated}
    store.save(
        Path(settings.save),
        loaded.model,
        loaded.optimizer,
        state,
        source,
        settings.keep_latest,
        files,
        learned_only=run.adapters is not None,
        table_rows=run.table_rows,
    )


def _report(run: TrainingRun, rates: str, start: int, done: int) -> None:
    total = run.config.train.train_steps
    where = f"; checkpoints in {run.config.checkpoint.save}" if run.config.checkpoint.save else "; nothing was saved"
    how = "finished" if done >= total else "stopped, run the same command to go on"
    speed = f"; {rates}" if rates else ""
    _log.info("%s after step %d of %d (%d now)%s%s", how, done, total, done - start, where, speed)


@contextmanager
def _locked(save: str | None) -> Iterator[None]:
    """Hold the run's folder, on rank 0 for all of them; another run in it is refused on every rank."""
    lock = FolderLock(Path(save or "."), "a training run")
    if save is not None:
        run_on_first_rank(lock.take)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _kept(logs: Path | None, rank: int) -> Iterator[None]:
    """Keep what rank 0 logs in a file of the run, with the error that ends it."""
    with ExitStack() as stack:
        run_on_first_rank(lambda: stack.enter_context(keep_log(None if logs is None else logs / LOG)))
        try:
            yield
        except Exception as error:
            if rank == 0:
                is_explained = isinstance(error, (V2PEError, OSError))
                _log.error("%s", error, exc_info=not is_explained, extra=FILE_ONLY)
            raise
