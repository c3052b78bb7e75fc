"""An evaluation is the stock pipeline with the weights of the run, from noise that does not change."""

from pathlib import Path

import pytest
from diffusers import FluxPipeline, FluxTransformer2DModel

from flow_factory.core.randomness import generator
from flow_factory.training.run import Run
from tests.tiny.run import TEST, forwards, logged, tiny


def test_an_evaluation_costs_its_steps(tmp_path: Path) -> None:
    run = tiny(tmp_path)
    with forwards(FluxTransformer2DModel) as seen:
        run.evaluate()
    assert len(seen) == 2 * 3


@pytest.mark.slow
@pytest.mark.parametrize("decay", [0, 0.9])
def test_evaluation_is_the_stock_pipeline_with_the_saved_checkpoint(tmp_path: Path, decay: float) -> None:
    run = tiny(tmp_path, f"train.ema_decay={decay}", "train.learning_rate=1e-2", "eval.guidance_scale=5.0", "eval.per_device_batch_size=1")
    run()
    _, samples = run.evaluators[0].run()
    stock = FluxPipeline.from_pretrained(run.context.config.model.model_name_or_path)
    bare = pictures(stock, run)
    stock.load_lora_weights(run.checkpoint())
    drawn = pictures(stock, run)
    assert [s.prompt for s in samples] == TEST
    assert [s.media.tobytes() for s in samples] == drawn
    assert bare != drawn, "the training left a trace"


def pictures(stock: FluxPipeline, run: Run) -> list[bytes]:
    """What a user of diffusers gets for the test rows from the noise of the evaluation.

    One at a time: of two, the text encoder rounds otherwise than of each alone.
    """
    stock.set_progress_bar_config(disable=True)
    section, seed = run.context.config.eval, run.context.config.train.seed
    call = {"height": 32, "width": 32, "num_inference_steps": 3, "guidance_scale": section.guidance_scale, "max_sequence_length": 16}
    return [stock(prompt=text, generator=generator(seed, "eval", i), **call).images[0].tobytes() for i, text in enumerate(TEST)]


def test_of_an_evaluation_only_the_pictures_that_are_shown_are_gathered(tmp_path: Path) -> None:
    all_rows, samples = tiny(tmp_path).evaluators[0].run()
    metrics, shown = tiny(tmp_path, "log.num_samples=1", "run_name=one").evaluators[0].run()
    assert (len(samples), len(shown)) == (4, 1) and shown[0].media.tobytes() == samples[0].media.tobytes()
    assert {k: v for k, v in metrics.items() if "reward" in k} == {k: v for k, v in all_rows.items() if "reward" in k}


def test_evaluations_draw_from_the_same_noise(tmp_path: Path) -> None:
    run = tiny(tmp_path)
    first, second = ([s.media.tobytes() for s in run.evaluators[0].run()[1]] for _ in range(2))
    assert first == second
    assert len(set(first)) == len(TEST)


def test_eval_freq_0_evaluates_never(tmp_path: Path) -> None:
    run = tiny(tmp_path, "eval.eval_freq=0")
    run()
    assert [line["step"] for line in logged(run.folder)] == [1, 2]


def test_eval_seed_fixes_the_evaluation_whatever_the_training_seed(tmp_path: Path) -> None:
    def pictures(name: str, *overrides: str) -> list[bytes]:
        return [s.media.tobytes() for s in tiny(tmp_path, f"run_name={name}", *overrides).evaluators[0].run()[1]]

    first = pictures("a", "train.seed=1", "eval.seed=7")
    assert pictures("b", "train.seed=2", "eval.seed=7") == first
    assert pictures("c", "train.seed=1", "eval.seed=8") != first
