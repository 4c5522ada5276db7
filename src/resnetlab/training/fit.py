"""`fit` and `resume`: from network, data and recipe to a finished run folder."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import nn

from resnetlab.core.checks import check_integer, check_number, from_mapping
from resnetlab.core.console import console, notice
from resnetlab.core.environment import describe_environment, resolve_device
from resnetlab.core.errors import NO_SPACE, UserError
from resnetlab.core.imports import asking_for, imports_to_record
from resnetlab.core.preprocessing import Preprocessing
from resnetlab.core.randomness import torch_seeded
from resnetlab.core.runs import Run, claimed, default_folder
from resnetlab.data.assemble import PhotoListing
from resnetlab.data.load import check_same_data, is_named, open_data, reload_data
from resnetlab.data.storage.store import ImageData
from resnetlab.evaluation.evaluate import default_split, evaluate_split
from resnetlab.evaluation.forward import Answers, answer_split
from resnetlab.models.adapters import materialize
from resnetlab.models.architectures import read_architecture, rebuild
from resnetlab.models.network import Architecture, Network
from resnetlab.models.surgery import freeze
from resnetlab.training.callbacks import Callback, Callbacks
from resnetlab.training.distributed import Processes, check_recipe, connected
from resnetlab.training.estimate import Estimate, estimate_training
from resnetlab.training.logs import TensorBoardLog
from resnetlab.training.loop import Training
from resnetlab.training.machine import Machine
from resnetlab.training.prepare import (
    PRETRAINED,
    automatic_choices,
    automatic_network,
    automatic_recipe,
    describe_framing,
    framing_for,
    framing_of,
    machine_for,
    model_name,
    network_for,
    normalized_for,
    open_model,
    open_pretrained,
    recipe_for,
)
from resnetlab.training.recipe import Recipe
from resnetlab.training.recipes import resolve_recipe
from resnetlab.training.sections import describe
from resnetlab.training.selection import FULL_EPOCHS
from resnetlab.weights.file import checkpoint_files, trained_epochs, write_network
from resnetlab.weights.load import for_channels, load_source
from resnetlab.weights.report import LoadReport
from resnetlab.weights.sources import Source


def fit(
    model: str | Architecture | nn.Module,
    data: str | Path | ImageData | Callable[[], ImageData | PhotoListing] | Sequence[Any] | Mapping[str, Any],
    *,
    overrides: Mapping[str, Any] | None = None,
    pretrained: str | Path | Run | None = None,
    recipe: str | Recipe = "auto",
    out: str | Path | None = None,
    seed: int = 0,
    budget: float | None = None,
    image_size: int | None = None,
    data_root: str | Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    memory_format: str = "auto",
    tensorboard: bool = False,
    keep_checkpoints: bool = False,
    on_step: Callback | None = None,
    on_epoch: Callback | None = None,
    quiet: bool = False,
    **changes: Any,
) -> Run:
    """Trains a network on images, evaluates it, and returns the run folder.

    Args:
        model: the network.

            - A name of the catalog, or "auto" for the recipe's choice by image size. Channels, classes and the stem
              of an ImageNet network come from the data.
            - "timm:NAME", a network of timm.
            - "FILE.py:NAME" or "package.module:NAME", a class or function of yours that returns an `nn.Module`. This
              executes the file or imports the module. It is called with `num_classes` and `in_channels` if its
              signature has them.
            - A `ResNetConfig`, or an `nn.Module`, which is trained in place. To load the run of a module of your own,
              pass the module: `resnetlab.load(run, model=MyNet())`.
        data: what `load_data` returned, or takes, or a function that loads or lists it. The function is called after
            everything else was checked. If it takes any keyword arguments (`**framing`), it gets those of `load_data`
            for the framing of the pretrained weights.
        overrides: fields of `ResNetConfig` to change in a network given by name, or further arguments of your class.
        pretrained: weights to start from, as `load_weights` takes them. Images are then normalized as they were for
            these weights, if that is known, and `model="auto"` means the network of the weights. Images that are
            loaded here also take image size, crop mode, interpolation and `crop_pct` from the weights.
        recipe: a name or a `Recipe`. "auto" is "photos" if the data is a folder or a table of photos, the network is
            "auto" and there are no weights to start from (see `prepare.automatic_recipe`), otherwise "quick".
        out: a folder that does not exist or is empty, or in which the same training was stopped before its first
            checkpoint. It is locked until the training ends. By default `runs/<data>-<model>-<date and time>`.
        seed: of initial weights, order and augmentation.
        budget: minutes that training may take. The number of epochs follows from a measurement of a few steps, so it
            differs between machines; it is recorded. By default nothing depends on time.
        image_size: in pixels, if `data` is loaded here; by default that of the pretrained weights, or of `load_data`.
        data_root: where the data sets are, if `data` is loaded here.
        device: "auto", or a device of torch.
        precision: "auto" for the rule of `machine.suitable`, "float32", "bfloat16", "float16" (GPUs only, with loss
            scaling), "float64", or "measured" for the fastest in a short timing.
        memory_format: "auto", "contiguous" or "channels_last".
        tensorboard: also write the history for TensorBoard, into the run's `tensorboard/`.
        keep_checkpoints: keep the last two checkpoints when the training is complete. They take three to four times the
            space of the network, and contain the state of the optimizer and the weights without averaging.
        on_step: a function of `CallbackState` that is called after every step. It can log, end the training or scale
            the learning rate. The loss it gets is read from the device, for which an accelerator waits.
        on_epoch: the same, after every epoch. Neither is recorded: pass them to `resume` again.
        quiet: show no progress.
        **changes: fields of the recipe to change, such as `epochs=10`. `loss`, `optimizer`, `schedule` and `augment`
            also take functions and classes, as `register` does; a function for `augment` is one more step. A run
            records their names only.

    Raises:
        UserError: something does not fit; nothing was trained.
        Interrupted: SIGINT, SIGTERM or SIGHUP arrived; `resume` continues from the checkpoint.
    """
    fields = overrides or {}
    callbacks = Callbacks(on_step=on_step, on_epoch=on_epoch)
    with connected() as processes, ExitStack() as held:
        with processes.together():  # mistakes are reported before images are read
            seed = check_integer("seed", seed, 0)
            is_loaded = isinstance(data, ImageData) or (callable(data) and not isinstance(data, nn.Module))
            if is_loaded and (image_size is not None or data_root is not None):
                raise UserError(
                    "image_size and data_root apply only if fit loads the data. Give them to load_data instead."
                )
            framing = framing_for(resolve_recipe(recipe, **changes), model)
            if budget is not None:
                budget = check_number("budget", budget, 0, above=True)
                if "epochs" in changes:
                    raise UserError("`budget` and `epochs` both determine the number of epochs. Remove one of them.")
            network = open_model(model, fields)
            found = None
            if pretrained is not None:
                found, network = open_pretrained(pretrained, network, fields)
            machine = machine_for(network, fields, device, precision, memory_format)
            if out is not None and isinstance(data, (str, Path)):
                check_outside(out, data)
            if tensorboard:
                TensorBoardLog(Path())  # raises if the package is missing

        def claim(folder: str | Path) -> Path:
            return processes.from_first(lambda: held.enter_context(claimed(folder)))

        folder = None if out is None else claim(out)
        own_machine = processes.place(machine)
        opener = _opener(data, data_root, image_size, {**framing, **framing_of(found)})
        known = data if isinstance(data, ImageData) else processes.in_turn(opener)
        with processes.together():
            listed = known
            chosen, known = automatic_recipe(recipe, model, listed, pretrained=pretrained, **changes)
            start = _prepare(network, known, fields, found, chosen, machine, seed)
            given = {"model": model, "recipe": recipe, "pretrained": pretrained}
            given |= {"precision": precision, "memory_format": memory_format}
            automatic = automatic_choices(given, changes, start.recipe, listed, known)
            check_recipe(start.recipe, processes, start.network, own_machine)
            folder = folder or default_folder(known.name, Path(start.name).name)
            check_outside(folder, known.arguments["source"])
        if budget is not None:
            within = functools.partial(_epochs_within, start, budget, processes.world_size)
            start = dataclasses.replace(start, recipe=start.recipe.changed(epochs=processes.from_first(within)))
            automatic = [name for name in automatic if name != "recipe.epochs"]
        if out is None:
            folder = claim(folder)
        if processes.is_first and not quiet:
            _announce(start, chosen.batch_size, processes.world_size, folder)
        images = known if isinstance(known, ImageData) else processes.in_turn(lambda: known.images)
        processes.check_equal("the images", images.fingerprint)

        def create() -> Run:
            _warn_of_shared_images(images)
            flags = {"tensorboard": tensorboard, "keep_checkpoints": keep_checkpoints}
            settings = _settings(start, images, processes.world_size, **flags)
            settings["automatic"] = automatic
            settings |= {} if budget is None else {"budget_minutes": budget}
            settings |= {"callbacks": callbacks.names} if callbacks.names else {}
            return Run.create(folder, settings, describe_environment())

        run = processes.from_first(create)
        return _train_and_evaluate(start.network, images, run, own_machine, processes, callbacks=callbacks, quiet=quiet)


def epoch_seconds(
    model: str | Architecture,
    data: str | Path | ImageData | Callable[[], ImageData | PhotoListing],
    *,
    overrides: Mapping[str, Any] | None = None,
    pretrained: str | Path | Run | None = None,
    recipe: str | Recipe = "auto",
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    memory_format: str = "auto",
    tensorboard: bool = False,
    keep_checkpoints: bool = False,
    **changes: Any,
) -> float:
    """Returns how many seconds an epoch of `fit` with these arguments takes on this machine, from a few steps."""
    fields, found, network = overrides or {}, None, open_model(model, overrides or {})
    framing = framing_for(resolve_recipe(recipe, **changes), model)
    if pretrained is not None:
        found, network = open_pretrained(pretrained, network, fields)
    machine = machine_for(network, fields, device, precision, memory_format)
    listed = data if isinstance(data, ImageData) else _opener(data, None, None, {**framing, **framing_of(found)})()
    chosen, listed = automatic_recipe(recipe, model, listed, pretrained=pretrained, **changes)
    return _epoch_seconds(_prepare(network, listed, fields, found, chosen, machine, seed), world_size=1)


def resume(
    run: str | Path | Run,
    *,
    model: str | Architecture | nn.Module | None = None,
    data: str | Path | ImageData | None = None,
    data_root: str | Path | None = None,
    device: str | None = None,
    finish: bool = False,
    epochs: int | None = None,
    on_step: Callback | None = None,
    on_epoch: Callback | None = None,
    quiet: bool = False,
) -> Run:
    """Continues an interrupted run exactly as if it had never stopped, ends it where it is, or extends a complete one.

    On the same machine and a CPU the result of continuing is equal bit for bit. A complete run is returned unchanged. A
    run that was stopped before its first checkpoint is started from its beginning.

    Args:
        run: the run folder.
        model: for a network of your own, permission to build it: "FILE.py:NAME" or "package.module:NAME", which are
            executed, or the module itself.
        data: where the folder of images is now, if it has moved; or the images themselves, which a run on arrays needs.
        data_root: where the data sets are now, if they have moved.
        device: another device than the run started on; precision and memory format are chosen again, and the last
            bits will differ.
        finish: end the run at its newest checkpoint instead of training the remaining epochs. The run then has its
            weights and its evaluation like any other, and records at which epoch it ended.
        epochs: the new total of a complete run, which is trained further. It starts from the run's network with a new
            optimizer, and the schedule of the learning rate runs again over the additional epochs.
        on_step: the callback that `fit` got, if it got one; without it, a warning says that the result may differ.
        on_epoch: the same.
        quiet: show no progress.

    Raises:
        UserError: no checkpoint can be read, another process trains the run, the device is not available, the data
            have changed, or `epochs` is given for an unfinished run or is not more than the run has.
        Interrupted: SIGINT, SIGTERM or SIGHUP arrived again.
    """
    with connected() as processes, ExitStack() as held:
        found = processes.from_first(lambda: run.reload() if isinstance(run, Run) else Run(run))
        if epochs is None and processes.from_first(lambda: found.is_complete and found.is_evaluated):
            if processes.is_first:
                _tidy(found)
                if not quiet:
                    notice(f"{found.path} is complete. To train longer: {found.resume_command} --epochs TOTAL")
            return found
        processes.from_first(lambda: held.enter_context(found.locked()))
        found = processes.from_first(found.reload)
        is_untrained = processes.from_first(lambda: found.is_untrained)
        settings, where = found.settings, f"{found.path}/run.toml"
        with processes.together():
            epochs = None if epochs is None else check_integer("epochs", epochs, 1)
            trained = processes.from_first(lambda: _check_wanted(found, finish, epochs))
            if is_untrained and settings["model"].get("weights_given"):
                raise UserError(
                    f"{found.path} was stopped before its first checkpoint, and it started from weights that the "
                    "folder does not contain. Repeat the command that started the training; it uses this "
                    "folder again."
                )
            with torch_seeded(settings["seed"], "initial weights"), asking_for(settings.get("imports", ()), found.path):
                Recipe.from_dict(settings["recipe"])  # it may name parts that are not known here
                network = rebuild(read_architecture(settings["model"]["config"], where), model, str(found.path))
                shown = from_mapping(Preprocessing, settings["preprocessing"], where)
                materialize(network, shown.channels, shown.image_size)
            recorded = from_mapping(Machine, settings["machine"], where)
            if device is None:
                resolve_device(recorded.device)
            # float64 is chosen by the user, never by the machine.
            precision = "float64" if recorded.precision == "float64" else "auto"
            machine = recorded if device is None else machine_for(network, {}, device, precision)
        machine = processes.place(machine)
        if processes.is_first:
            _report_another_machine(found, processes, None if device is None else machine)
        if isinstance(data, ImageData):
            with processes.together():
                check_same_data(data, settings["data"], "the images given")
            images = data
        else:
            images = processes.in_turn(lambda: reload_data(settings["data"], source=data, data_root=data_root))
        with processes.together():
            _freeze_as_recorded(network, settings["model"])
            check_recipe(Recipe.from_dict(settings["recipe"]), processes, network, machine)
        if epochs is not None:
            if processes.is_first and not quiet:
                notice(_extending(found, trained, epochs))
            found = processes.from_first(lambda: found.extend(trained, epochs))
        finish = finish or processes.from_first(lambda: found.is_complete)
        callbacks = Callbacks(on_step=on_step, on_epoch=on_epoch)
        if processes.is_first and not finish:
            _warn_of_callbacks(found, callbacks)
        return _train_and_evaluate(
            network, images, found, machine, processes, restore=not is_untrained, finish=finish, callbacks=callbacks,
            quiet=quiet,
        )  # fmt: skip


def check_outside(folder: str | Path, images: str | Path) -> None:
    """Raises `UserError` if a run's folder is within the folder of images, where it would be read as a class."""
    if Path(images).is_dir() and not is_named(images) and Path(folder).resolve().is_relative_to(Path(images).resolve()):
        raise UserError(f"{folder} is within the folder of images. Choose another folder with --out (in Python out=).")


@dataclass(frozen=True, kw_only=True)
class _Start:
    """What a new run starts with."""

    name: str
    network: Network
    data: ImageData | PhotoListing
    recipe: Recipe
    machine: Machine
    seed: int
    found: Source | None
    loaded: LoadReport | None
    weights_given: bool


def _prepare(
    model: str | Architecture | Network, data: ImageData | PhotoListing, overrides: Mapping[str, Any],
    found: Source | None, recipe: Recipe, machine: Machine, seed: int,
) -> _Start:  # fmt: skip
    """Builds the network for the images, loads its weights, and resolves the recipe."""
    if model == "auto":
        model = automatic_network(recipe, data, found)
    network = network_for(model, data, seed, overrides, found, recipe=recipe)
    loaded = None
    if found is not None:
        with torch_seeded(seed, "new head"):
            loaded = load_source(network, found, data.class_names)
    name = found.network if found is not None and model == PRETRAINED else None
    return _Start(
        name=name or model_name(model),
        network=network,
        data=data,
        recipe=recipe_for(recipe, data, network),
        machine=machine,
        seed=seed,
        found=found,
        loaded=loaded,
        weights_given=found is not None or isinstance(model, Network),
    )


def _announce(start: _Start, batch_size: int, world_size: int, folder: Path) -> None:
    """Prints what will be trained, before the first step."""
    recipe = start.recipe
    if isinstance(start.data, ImageData):
        console.print(start.data)
    else:
        notice(str(start.data))
    each = "" if world_size == 1 else f" in each of {world_size} processes"
    pixels, epochs = start.data.image_size, f"{recipe.epochs} epoch{'s' if recipe.epochs > 1 else ''}"
    notice(
        f"{start.name} at {pixels} pixels, recipe {recipe.name}, {epochs}\n{start.machine}{each}\nrun folder {folder}"
    )
    if recipe.batch_size != batch_size:
        notice(
            f"batches of {recipe.batch_size} instead of {batch_size} images, because the training split is "
            f"small; learning rate {recipe.lr:.3g}",
        )
    if start.found is not None:
        notice(f"{start.loaded}\n{describe_framing(start.found, start.data.framing)}")
    if sections := describe(recipe, start.network):
        notice(sections)
    notice(str(_estimate(start, world_size)))


def _epochs_within(start: _Start, minutes: float, world_size: int) -> int:
    """Returns how many epochs take this long."""
    seconds, whole = 60 * minutes, _epoch_seconds(start, world_size)
    rest = seconds - FULL_EPOCHS * whole
    if rest <= 0 or not start.recipe.skip_easy:
        return max(1, int(seconds / whole))
    return FULL_EPOCHS + int(rest / _epoch_seconds(start, world_size, skip_easy=start.recipe.skip_easy))


def _epoch_seconds(start: _Start, world_size: int, skip_easy: float = 0.0) -> float:
    """Returns the mean time of an epoch in a long training; by default, all its epochs show all images."""
    many = 1000  # enough that their time is measured
    recipe = start.recipe.changed(epochs=many, skip_easy=skip_easy)
    estimate = _estimate(dataclasses.replace(start, recipe=recipe), world_size)
    assert estimate.seconds is not None
    return estimate.seconds / many


def _estimate(start: _Start, world_size: int) -> Estimate:
    """Returns how long the training will take; each process does its share of the work."""
    data = start.data
    held_out = data.splits.keys() - {"train"}
    return estimate_training(
        start.network,
        start.recipe,
        start.machine,
        data.framing,
        images=len(data.split("train")),
        validated=len(data.split("validation")) if "validation" in held_out else 0,
        evaluated=len(data.split("test" if "test" in held_out else "validation")) if held_out else 0,
        world_size=world_size,
    )


def _settings(start: _Start, images: ImageData, world_size: int, **flags: bool) -> dict[str, Any]:
    """Returns what run.toml records: enough to train again, and to resume. Flags are recorded if they are set."""
    network = start.network
    preprocessing = _normalized_alike(normalized_for(images.preprocessing, start.recipe), start.found)
    settings = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": start.seed,
        "model": {
            "name": start.name,
            "config": network.config.to_dict(),
            "frozen": [name for name, parameter in network.named_parameters() if not parameter.requires_grad],
            "frozen_sections": sorted(network.frozen),
        },
        "data": images.describe(),
        "preprocessing": dataclasses.asdict(preprocessing),
        "recipe": start.recipe.to_dict(),
        "machine": start.machine.to_dict(),
    }
    if imports := imports_to_record():
        settings["imports"] = imports
    if start.weights_given:
        settings["model"]["weights_given"] = True  # the seed alone does not lead to the initial weights
    if start.found is not None:
        settings["model"] |= {"pretrained": start.found.where, "lineage": list(start.found.lineage)}
    settings |= {name: True for name, flag in flags.items() if flag}
    if world_size > 1:
        settings["processes"] = world_size
    return settings


def _freeze_as_recorded(network: Network, recorded: Mapping[str, Any]) -> None:
    frozen = recorded.get("frozen", [])
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in frozen)
    if sections := recorded.get("frozen_sections"):
        freeze(network, *sections)


def _train_and_evaluate(
    model: Network, data: ImageData, run: Run, machine: Machine, processes: Processes, *, restore: bool = False,
    finish: bool = False, callbacks: Callbacks, quiet: bool,
) -> Run:  # fmt: skip
    """Trains a new or resumed run, which is locked, to its end and evaluates it; run.toml has all settings.

    With `restore` the training continues; with `finish` too, it ends there. A process that is killed at any moment
    leaves a run that can be resumed: what the next step needs is only removed after it.
    """
    with _explaining_full_disk(run):
        ends = {"restore": restore, "finish": finish}
        return _conduct(model, data, run, machine, processes, **ends, callbacks=callbacks, quiet=quiet)


@contextmanager
def _explaining_full_disk(run: Run) -> Iterator[None]:
    """Turns the error of a full disk into one that says which checkpoint is the last and how to continue."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        files = [run.weights] if run.is_complete else checkpoint_files(run.checkpoints)
        kept = f"The last checkpoint is {files[0]}. " if files else ""
        raise UserError(
            f"no space to write {error.filename or 'a file'}: {error.strerror}. {kept}Free disk space, then continue "
            f"with: {run.resume_command}"
        ) from error


def _conduct(
    model: Network, data: ImageData, run: Run, machine: Machine, processes: Processes, *, restore: bool, finish: bool,
    callbacks: Callbacks, quiet: bool,
) -> Run:  # fmt: skip
    """Does the work of `_train_and_evaluate`."""
    settings = run.settings
    preprocessing = from_mapping(Preprocessing, settings["preprocessing"], f"{run.path}/run.toml")
    model.class_names, model.preprocessing = data.class_names, preprocessing
    training = Training(
        model,
        data,
        preprocessing=preprocessing,
        recipe=Recipe.from_dict(settings["recipe"]),
        machine=machine,
        seed=settings["seed"],
        run=run,
        quiet=quiet,
        processes=processes,
        callbacks=callbacks,
    )
    if restore:
        training.restore()
    if finish:
        training.finish()
    else:
        training.train()
    run = processes.from_first(lambda: _save_network(training))  # before anything else can fail
    if set(data.splits) != {"train"}:
        rank, world_size = processes.rank, processes.world_size
        share = answer_split(model, data, default_split(data), preprocessing, rank=rank, world_size=world_size)
        logits, embeddings = processes.gather(share.logits), processes.gather(share.embeddings)

        def evaluate() -> None:
            evaluation = evaluate_split(model, data, answers=Answers(logits, embeddings))
            origin = training.origin
            origin["provenance"]["metrics"] = evaluation.summary
            write_network(run.weights, model, origin)  # first: an evaluated run is not evaluated again
            evaluation.save(run.evaluation())

        processes.from_first(evaluate)
    if not settings.get("keep_checkpoints"):
        processes.from_first(run.remove_checkpoints)
    return run


def _save_network(training: Training) -> Run:
    """Writes the network of an ended training, records the end, and returns the run."""
    run = training.run
    run.check_place()
    (run.evaluation() / "summary.json").unlink(missing_ok=True)  # it is of another network, from before the end
    run.write_history(training.state.history)
    write_network(run.weights, training.state.model, training.origin)
    run.record_end(training.state.progress.epoch, training.ended_by)
    return run


def _check_wanted(run: Run, finish: bool, epochs: int | None) -> int:
    """Returns the complete epochs of a run to extend, otherwise 0; raises `UserError` for what the run cannot do."""
    if epochs is None:
        if finish and run.is_untrained:
            raise UserError(
                f"{run.path} was stopped before its first checkpoint, so there is nothing to finish. Start it again "
                f"with: {run.resume_command}"
            )
        return 0
    if finish:
        raise UserError(f"finish ends a run and epochs={epochs} extends one. Choose one of them.")
    if not run.is_complete:
        raise UserError(
            f"epochs={epochs} extends a complete run, and {run.path} is at epoch {len(run.history_rows())} of "
            f"{run.epochs}. To continue it to epoch {run.epochs}, omit epochs: {run.resume_command}. Or "
            "end it first with finish (--finish), and then extend it."
        )
    trained = trained_epochs(run)
    if epochs <= trained:
        raise UserError(
            f"epochs={epochs} is the new total of epochs, and {run.path} has trained {trained} already. Give more than "
            f"{trained}."
        )
    return trained


def _extending(run: Run, trained: int, epochs: int) -> str:
    return (
        f"extending {run.path} from {trained} to {epochs} epochs. Training starts from the run's network with a new "
        f"optimizer, and the learning rate's schedule runs again over the {epochs - trained} additional epochs."
    )


def _tidy(run: Run) -> None:
    """Restores history.csv of a complete run and removes what a killed process left, unless another one has the run."""
    is_left = run.checkpoints.is_dir() and not run.settings.get("keep_checkpoints")
    if run.has_history and not is_left and not any(run.path.rglob(".*.part")):
        return
    with suppress(UserError), run.locked():
        if run.reload().is_complete:
            run.restore_history()
            if not run.settings.get("keep_checkpoints"):
                run.remove_checkpoints()


def _opener(
    data: Any, data_root: str | Path | None, image_size: int | None, framing: Mapping[str, Any]
) -> Callable[[], ImageData | PhotoListing]:
    """Returns what opens the images, in the framing of recipe or weights unless `image_size` or a function decides."""
    if callable(data) and not isinstance(data, nn.Module):
        takes_framing = any(one.kind is one.VAR_KEYWORD for one in inspect.signature(data).parameters.values())
        return functools.partial(data, **framing) if takes_framing else data  # type: ignore[return-value]
    chosen = {} if image_size is None else {"image_size": image_size}
    return lambda: open_data(data, framing, data_root=data_root, **chosen)


def _normalized_alike(preprocessing: Preprocessing, found: Source | None) -> Preprocessing:
    """Returns the data's preprocessing with the mean and deviation that the weights to start from were trained with."""
    if found is None or found.preprocessing is None:
        return preprocessing
    theirs = for_channels(found.preprocessing, preprocessing.channels)
    return dataclasses.replace(preprocessing, mean=theirs.mean, std=theirs.std)


def _warn_of_shared_images(data: ImageData) -> None:
    """Warns of images that are in two splits, because they make the figures of the second look too good."""
    shared = data.shared_images()
    found = [f"{len(shared['train', split])} {split} images" for split in data.splits if ("train", split) in shared]
    if found:
        warnings.warn(
            f"{' and '.join(found)} of {data.name} are also in the training split, so the measured accuracy is "
            "too high. `resnetlab inspect` lists them.",
            stacklevel=5,
        )


def _warn_of_callbacks(run: Run, given: Callbacks) -> None:
    """Warns if a run was started with callbacks that are missing now, because it then continues in another way."""
    places = [name.partition("=")[0] for name in given.names]
    if missing := [name for name in run.settings.get("callbacks", []) if name.partition("=")[0] not in places]:
        warnings.warn(
            f"{run.path} was started with {', '.join(missing)}, which a run does not record. To continue exactly, pass "
            "the same functions to resnetlab.resume.",
            stacklevel=3,
        )


def _report_another_machine(run: Run, processes: Processes, chosen: Machine | None) -> None:
    began = run.settings.get("processes", 1)
    if began != processes.world_size:
        notice(
            f"processes: {began} when the run started, {processes.world_size} now. The last bits may differ, "
            "and each process normalizes over its own images only.",
        )
    if chosen is not None:
        notice(f"continuing with {chosen}: the last bits may differ from those of an uninterrupted run.")
        return
    then, now = run.environment, describe_environment()
    pairs = {name: (then.get(name), now[name]) for name in ("processor", "accelerator")}
    pairs["torch"] = (then.get("packages", {}).get("torch"), now["packages"]["torch"])
    changes = [f"{name} was {old}, is {new}" for name, (old, new) in pairs.items() if old != new]
    if changes:
        changed = "; ".join(changes)
        notice(f"this is not the machine that the run started on ({changed}): the last bits may differ.")
