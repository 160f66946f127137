"""Whatever a user gets wrong: the right exit code, no trace, and a message that says what to do."""

from __future__ import annotations

import json
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from foveate.tools.demo import ADAPTERS

Foveate = Callable[..., Result]
USAGE, CHECKPOINT, BUNDLE, MISSING, INPUT, EXPORT = 2, 3, 4, 6, 7, 8


def refused(done: Result | subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """The command ended with `code`, silent on stdout, and with all `words` in a message without a trace."""
    got = done.exit_code if isinstance(done, Result) else done.returncode
    assert got == code, done.stderr
    message = " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in message
    assert done.stdout.strip() == ""
    for word in words:
        assert word in message


def run_without(module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """`foveate` in a fresh interpreter in which `module` is not installed."""
    code = f"import sys; sys.modules[{module!r}] = None\nfrom foveate.tools.cli.main import main\nmain()"
    words = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def png(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be of any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    """A bundle that a test may break."""
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- options ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--method", "no-such"), ("no-such", "cls-knee", "text-relevance", "foveate methods")),
        (("--method", "cls-knee:nose=chord"), ("nose", "knee", "foveate methods")),
        (("--method", "cls-knee:knee=elbow"), ("elbow", "one of chord, cumulative")),
        (("--method", "text-relevance@2:ratio=1.5"), ("ratio=1.5", "(0, 1]")),
        (("--method", "text-relevance"), ("needs a layer", "text-relevance@2")),
        (("--method", "cls-knee@2"), ("does not work", "encoder")),
        (("--method", "text-relevance@99"), ("99",)),
        (("--method", "vtc-cl"), ("vtc-cl", "Did you mean vtc-cls")),
        (("--method", "fastv@2+99"), ("99", "1 to 3")),
        (("--method", "fastv@2", "--method", "pyramiddrop"), ("same place",)),
        (("--method", "dyvte"), ("dyvte", "no adapter", "foveate train dyvte")),
        (("--method", "setok"), ("setok", "no adapter", "foveate train setok")),
        (("--layout", "diagonal"), ("diagonal", "fused", "segmented")),
        (("--positions", "sitting"), ("sitting", "compact or original")),
        (("--dtype", ""), ("unknown precision", "int8, int4", "STAGE=PRECISION")),
        (("--dtype", "int3"), ("unknown precision", "int3")),
        (("--dtype", "int8,int4"), ("two precisions for all stages", "int8,int4")),
        (("--dtype", "head=int8,head=fp32"), ("two precisions for head", "head=int8")),
        (("--dtype", "int8,,"), ("unknown precision", "Found: ''")),
        (("--dtype", "vision="), ("stage vision", "Found: ''")),
        (("--dtype", "eyes=int8"), ("eyes", "vision, projector, decoder, head")),
    ],
)
def test_export_options(
    foveate: Foveate, checkpoint: Path, tmp_path: Path, words: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    target = tmp_path / "bundle"
    refused(foveate("export", checkpoint, "-o", target, *words), USAGE, *expected)
    assert not target.exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--keep-ratio", "1.5"), ("1.5", "0 < keep_ratio <= 1")),
        (("--keep-ratio", "0"), ("keep_ratio", "0 < keep_ratio <= 1")),
        (("--keep-tokens", "0"), ("keep_tokens", "1 or more")),
        (("--keep-ratio", "0.5", "--keep-tokens", "4"), ("exclude each other", "one of them")),
        (("--keep", "decoder@9=0.5"), ("decoder@9", "encoder, decoder@2")),
        (("--keep", "decoder@2=half"), ("half", "0.25", "64")),
        (("--keep", "decoder@2"), ("malformed", "SITE=AMOUNT")),
        (("--temperature", "-1"), ("temperature", "0 or more")),
        (("--top-p", "2"), ("top_p", "0 < top_p <= 1")),
        (("--max-new-tokens", "0"), ("max_new_tokens", "1 or more")),
        (("--threads", "0"), ("threads", "1 to 4096")),
        (("--layout", "segmented"), ("segmented", "fused", "--layout segmented")),
        (("--chat",), ("--chat",)),
    ],
)
def test_run_options(
    foveate: Foveate, bundle: Path, words: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    done = foveate("run", bundle, "--prompt", "What is this?", "--json", *words)
    refused(done, USAGE, *expected)


def test_run_wants_a_question(foveate: Foveate, bundle: Path) -> None:
    refused(foveate("run", bundle), USAGE, "--prompt", "--chat")
    refused(foveate("run", bundle, "--prompt", "  "), INPUT, "empty", "--prompt")


def test_a_misspelt_option_is_named(foveate: Foveate, bundle: Path) -> None:
    refused(foveate("run", bundle, "--keepratio", "0.3"), USAGE, "--keepratio", "--keep-ratio")


def test_a_schedule_of_another_model(foveate: Foveate, checkpoint: Path, tmp_path: Path) -> None:
    target, schedule = tmp_path / "bundle", tmp_path / "schedule.toml"
    schedule.write_text('method = "layer-rank"\nnum_layers = 32\n[[cut]]\nlayer = 2\nshare = 0.5\n')
    words = ("export", checkpoint, "-o", target, "--schedule", schedule)
    refused(foveate(*words), USAGE, "another depth", "32 layers", "foveate search")
    schedule.write_text(schedule.read_text().replace("layer = 2", "layer = 40"))
    refused(foveate(*words), USAGE, "behind the last layer")
    refused(foveate(*words[:-1], tmp_path / "none.toml"), USAGE, "cannot be read")
    assert not target.exists()


def test_an_adapter_of_another_model(foveate: Foveate, checkpoint: Path, tmp_path: Path) -> None:
    target, adapter = tmp_path / "bundle", ADAPTERS / "dyvte.safetensors"
    words = ("export", checkpoint, "-o", target, "--adapter")
    refused(foveate(*words, adapter, "--method", "dyvte"), CHECKPOINT, "another model", "foveate train dyvte")
    refused(foveate(*words, tmp_path / "none", "--method", "dyvte"), CHECKPOINT, "is no adapter")
    assert not target.exists()
    unused = ("export", "demo", "-o", target, "--adapter", adapter, "--method", "fastv")
    refused(foveate(*unused), USAGE, "'dyvte', which this plan does not have")


# --- checkpoints --------------------------------------------------------------------------------------------


def test_no_checkpoint(foveate: Foveate, tmp_path: Path) -> None:
    refused(foveate("export", tmp_path / "nowhere", "-o", tmp_path / "b"), CHECKPOINT, "nowhere")


def test_unsupported_model_type(foveate: Foveate, checkpoint: Path, tmp_path: Path) -> None:
    other = shutil.copytree(checkpoint, tmp_path / "other")
    edit_json(other / "config.json", model_type="visual_novel")
    refused(foveate("export", other, "-o", tmp_path / "b"), CHECKPOINT, "visual_novel", "llava")


def test_truncated_weights(foveate: Foveate, checkpoint: Path, tmp_path: Path) -> None:
    other = shutil.copytree(checkpoint, tmp_path / "other")
    weights = other / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    refused(foveate("export", other, "-o", tmp_path / "b"), CHECKPOINT, "model.safetensors")
    assert not (tmp_path / "b").exists()


def test_an_existing_folder_is_not_replaced(foveate: Foveate, checkpoint: Path, copy: Path) -> None:
    refused(foveate("export", checkpoint, "-o", copy, "--method", "none"), USAGE, "--overwrite")
    assert (copy / "manifest.json").is_file()


# --- images and prompts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", ("empty", "0 bytes")),
        (b"not an image at all", ("corrupt or of an unknown format", "PNG")),
        (png(64, 64), ("corrupt or truncated",)),
        (png(60_000, 60_000), ("too large", "scale it down")),
    ],
    ids=["zero bytes", "text", "truncated", "bomb"],
)
def test_images(
    foveate: Foveate, bundle: Path, tmp_path: Path, content: bytes, expected: tuple[str, ...]
) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    done = foveate("run", bundle, "--image", path, "--prompt", "What is this?", "--json")
    refused(done, INPUT, "picture.png", *expected)


def test_missing_image(foveate: Foveate, bundle: Path, tmp_path: Path) -> None:
    done = foveate("run", bundle, "--image", tmp_path / "gone.png", "--prompt", "What?", "--json")
    refused(done, INPUT, "gone.png")


def test_no_such_sample(foveate: Foveate, bundle: Path) -> None:
    refused(foveate("run", bundle, "--image", "demo:1000", "--prompt", "What?"), INPUT, "demo:0 to demo:999")


def test_placeholder_mismatch(foveate: Foveate, bundle: Path, image: Path) -> None:
    done = foveate("run", bundle, "--image", image, "--prompt", "<image> and <image>?", "--json")
    refused(done, INPUT, "1", "2")


def test_prompt_longer_than_the_model(foveate: Foveate, bundle: Path) -> None:
    done = foveate("run", bundle, "--prompt", "word " * 400, "--json")
    refused(done, INPUT, "too long", "shorten")


# --- bundles ------------------------------------------------------------------------------------------------


def test_no_bundle(foveate: Foveate, tmp_path: Path) -> None:
    refused(foveate("run", tmp_path / "nowhere", "--prompt", "Hi"), BUNDLE, "nowhere")


def test_half_written_bundle(foveate: Foveate, copy: Path) -> None:
    (copy / "manifest.json").unlink()
    refused(foveate("run", copy, "--prompt", "Hi"), BUNDLE, "manifest.json", "foveate export")


def test_tampered_bundle(foveate: Foveate, copy: Path) -> None:
    weights = copy / "onnx" / "weights.bin"
    weights.write_bytes(b"\xff" + weights.read_bytes()[1:])
    for command in (("run", copy, "--prompt", "Hi"), ("inspect", copy)):
        refused(foveate(*command), BUNDLE, "weights.bin", "export")


def test_missing_file(foveate: Foveate, copy: Path) -> None:
    (copy / "onnx" / "vision.onnx").unlink()
    refused(foveate("run", copy, "--prompt", "Hi"), BUNDLE, "vision.onnx")


def test_newer_bundle(foveate: Foveate, copy: Path) -> None:
    edit_json(copy / "manifest.json", format=99)
    refused(foveate("inspect", copy), BUNDLE, "99", "foveate")


def test_broken_manifest(foveate: Foveate, copy: Path) -> None:
    (copy / "manifest.json").write_text("{")
    refused(foveate("inspect", copy), BUNDLE, "manifest.json")


# --- packages and disk --------------------------------------------------------------------------------------


def test_export_without_torch(checkpoint: Path, tmp_path: Path) -> None:
    done = run_without("torch", "export", checkpoint, "-o", tmp_path / "b")
    refused(done, MISSING, "torch", 'pip install "foveate[export]"')


def test_a_misspelt_method_needs_no_torch(checkpoint: Path, tmp_path: Path) -> None:
    done = run_without("torch", "export", checkpoint, "-o", tmp_path / "b", "--method", "no-such")
    refused(done, USAGE, "no-such", "cls-knee")


def test_run_needs_no_torch(bundle: Path, image: Path) -> None:
    done = run_without("torch", "run", bundle, "--image", image, "--prompt", "What is this?", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["pruning"]["visual_tokens"] == 25


def test_run_without_onnxruntime(bundle: Path) -> None:
    refused(
        run_without("onnxruntime", "run", bundle, "--prompt", "Hi"), MISSING, "onnxruntime", "pip install"
    )


def test_full_disk(checkpoint: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk: the same error, and nothing is left behind."""
    code = (
        "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "from foveate.tools.cli.main import main\nmain()"
    )
    target = tmp_path / "out" / "bundle"
    words = ["export", str(checkpoint), "-o", str(target), "--method", "none", "--layout", "fused"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    refused(done, EXPORT, "disk")
    assert not list(target.parent.glob("*"))
    assert not [path for path in target.parent.glob(".*") if path.is_dir()]


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT for children")
def test_interrupt_leaves_with_130(bundle: Path) -> None:
    words = [
        sys.executable,
        "-c",
        "from foveate.tools.cli.main import main; main()",
        "run",
        str(bundle),
        "--chat",
    ]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}

    def as_in_a_terminal() -> None:  # a shell's background jobs, and so their children, ignore the interrupt
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(words, text=True, preexec_fn=as_in_a_terminal, **pipes) as child:  # type: ignore[call-overload]
        assert child.stderr is not None
        seen = ""
        while not seen.endswith("you>"):  # the prompt: it is waiting for us
            seen += (letter := child.stderr.read(1))
            assert letter, f"ended early: {seen}"
        time.sleep(0.2)
        child.send_signal(signal.SIGINT)
        # Not `communicate`: it closes stdin, and the end of input is another way to leave.
        child.wait(timeout=30)
        rest = child.stderr.read()
    assert child.returncode == 130
    assert "Traceback" not in rest
