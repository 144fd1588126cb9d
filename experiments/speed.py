"""Where the time of a photograph goes, and what makes it less: a table of files, input sizes and decode factors.

`python experiments/speed.py MODEL [MODEL...] --data DIR`: each MODEL is an ONNX file with its card. The first is also
tried at the sizes of `--sides` and the decode factors of `--factors`. All take turns on the same photographs, with one
thread, and processor time is counted, since a busy machine disturbs it least. `--fold MODEL SPLIT`, five times, adds
the paired comparison out of fold, by networks that did not see the photographs. `--openvino` adds the same networks in
OpenVINO (`pip install openvino`).
"""

import argparse
import csv
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnx.utils import Extractor

from trashsorting.core.card import Preprocessing, read_card
from trashsorting.core.image import min_side, open_rgb, resize, to_input
from trashsorting.data.manifest import read_folder
from trashsorting.export.quantize import compare
from trashsorting.inference.session import open_session, run_logits

STEPS = ("decode", "resize", "normalise", "network")
FLAGS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8")


@dataclass(frozen=True)
class Way:
    """A line of the table: a file and its preprocessing."""

    name: str
    file: Path
    preprocessing: Preprocessing
    network: Callable[[np.ndarray], np.ndarray]  # From (1, 3, side, side) to (1, n_classes)

    def logits(self, data: bytes) -> tuple[np.ndarray, list[float]]:
        "Of one photograph, with the processor milliseconds of each of `STEPS`."
        uncropped = self.preprocessing.model_copy(update={"crop_mode": "squash", "crop_pct": 1.0})
        marks = [time.process_time()]
        picture = open_rgb(data, min_side=min_side(self.preprocessing))
        marks.append(time.process_time())
        small = resize(picture, self.preprocessing)
        marks.append(time.process_time())
        inputs = to_input(small, uncropped)[None]
        marks.append(time.process_time())
        logits = self.network(inputs)[0]
        marks.append(time.process_time())
        return logits, [1000 * (end - start) for start, end in pairwise(marks)]


def with_side(file: Path, side: int, out: Path) -> Path:
    "A copy with another input size and only logits. The sides are multiples of 32, so that the padding stays right."
    model = onnx.load(file)
    model = Extractor(model).extract_model([model.graph.input[0].name], ["logits"])
    axes = model.graph.input[0].type.tensor_type.shape.dim[2:]
    cells, new_cells = ((length // 32) ** 2 for length in (axes[0].dim_value, side))
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if tensor.data_type == onnx.TensorProto.INT64 and values.ndim == 1 and len(values) > 2 and values[-1] == cells:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.array([*values[:-1], new_cells]), tensor.name))
    for axis in axes:
        axis.dim_value = side
    del model.graph.value_info[:]
    onnx.save(model, out)
    return out


def in_openvino(file: Path, side: int) -> Callable[[np.ndarray], np.ndarray]:
    "The network of a file in OpenVINO, with one thread and its usual precision."
    import openvino

    core = openvino.Core()
    model = core.read_model(file)
    model.reshape([1, 3, side, side])
    model = openvino.Model([model.output("logits")], model.get_parameters())
    settings = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    return lambda inputs: request.infer({0: inputs})[0]


def make_ways(models: Sequence[Path], options: argparse.Namespace, folder: Path) -> list[Way]:
    "All lines of the table; the first is what the others are compared with."
    ways = []
    for number, file in enumerate(models):
        preprocessing = read_card(file).preprocessing
        sizes = [preprocessing.input_size, *(options.sides if number == 0 else [])]
        for side in dict.fromkeys(sizes):
            path = file if side == preprocessing.input_size else with_side(file, side, folder / f"{number}-{side}.onnx")
            for factor in dict.fromkeys([preprocessing.decode_factor, *(options.factors if number == 0 else [])]):
                changed = preprocessing.model_copy(update={"input_size": side, "decode_factor": factor})
                session = open_session(path, 1)
                name = f"{file.name}, {side} pixels, factor {factor:g}"
                ways.append(Way(name, path, changed, lambda inputs, session=session: run_logits(session, inputs)))
        if options.openvino:
            network = in_openvino(file, preprocessing.input_size)
            ways.append(Way(f"{file.name}, OpenVINO", file, preprocessing, network))
    return ways


@cache
def memory(file: Path) -> float:
    "Megabytes that opening a file and one prediction add to a process."
    code = (
        "import sys, numpy as np; from trashsorting.inference.session import open_session, run_logits\n"
        "read = lambda: int(open('/proc/self/statm').read().split()[1])\n"
        "before, session = read(), open_session(sys.argv[1], 1)\n"
        "run_logits(session, np.zeros([1, *session.get_inputs()[0].shape[1:]], np.float32)); print(read() - before)"
    )
    place = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code, file], check=True, capture_output=True, text=True, env=place)
    return int(done.stdout) * os.sysconf("SC_PAGESIZE") / 1e6


def out_of_fold(options: argparse.Namespace, folder: Path) -> dict[str, str]:
    "By line of the table: photographs lost and won by it, each by the network that did not see it."
    logits, targets = {}, []
    for number, (model, split) in enumerate(options.fold):
        labels = read_card(model).classes
        with open(split, encoding="utf-8") as stream:
            rows = [row for row in csv.DictReader(stream) if row["split"] == "val"][:: options.every]
        place = folder / str(number)
        place.mkdir()
        ways = make_ways([Path(model)], options, place)
        for row in rows:
            data = (options.data / row["file"]).read_bytes()
            for way in ways:
                logits.setdefault(way.name.partition(", ")[2], []).append(way.logits(data)[0])
        targets += [labels.index(row["label"]) for row in rows]
    values, first = np.array(targets), np.array(next(iter(logits.values())))
    pairs = {name: compare(first, np.array(second), values) for name, second in logits.items()}
    return {
        name: f"{(pair.right_before - pair.lost + pair.won) / pair.n:.1%} of {pair.n}, {pair.lost} lost, {pair.won} won"
        for name, pair in pairs.items()
    }


def processor() -> str:
    "Name and flags of the processor (Linux)."
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    name, flags = (re.search(rf"^{key}\s*: (.*)$", text, re.M)[1] for key in ("model name", "flags"))
    return f"{name}, {', '.join(flag for flag in FLAGS if flag in flags.split()) or 'no vectors'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", help="ONNX files with their cards")
    parser.add_argument("--data", type=Path, required=True, help="folder of photographs, one sub-folder for each class")
    parser.add_argument(
        "--sides", type=int, nargs="*", default=[], help="more input sizes of the first, multiples of 32"
    )
    parser.add_argument("--factors", type=float, nargs="*", default=[], help="more decode factors of the first")
    parser.add_argument("--fold", nargs=2, action="append", default=[], metavar=("FILE", "CSV"), help="see above")
    parser.add_argument("--every", type=int, default=1, help="only each so many-th photograph of a fold")
    parser.add_argument("--count", type=int, default=100, help="photographs to time and to compare the classes of")
    parser.add_argument("--openvino", action="store_true", help="also in OpenVINO")
    options = parser.parse_args()
    entries = read_folder(options.data).entries
    step = max(1, len(entries) // options.count)
    pictures = [(options.data / entry.file).read_bytes() for entry in entries[::step][: options.count]]
    with TemporaryDirectory() as folder:
        ways = make_ways(options.models, options, Path(folder))
        for way in ways * 3:
            way.logits(pictures[0])
        results = [[way.logits(picture) for way in ways] for picture in pictures]
        paired = out_of_fold(options, Path(folder)) if options.fold else {}
        print(f"{processor()}; {len(pictures)} photographs, one thread, processor ms (medians)\n")
        print("| | " + " | ".join(STEPS) + " | sum | of the first | MB | memory, MB | other classes | out of fold |")
        print("|---|" + "---|" * (len(STEPS) + 6))
        for number, way in enumerate(ways):
            times = [statistics.median(row[number][1][step] for row in results) for step in range(len(STEPS))]
            ratio = statistics.median(sum(row[number][1]) / max(1e-3, sum(row[0][1])) for row in results)
            changed = sum(row[number][0].argmax() != row[0][0].argmax() for row in results)
            cells = [*(f"{value:.2f}" for value in (*times, sum(times), ratio)), f"{way.file.stat().st_size / 1e6:.1f}"]
            cells += ["" if "OpenVINO" in way.name else f"{memory(way.file):.0f}", str(changed)]
            print(f"| {way.name} | {' | '.join(cells)} | {paired.get(way.name.partition(', ')[2], '')} |", flush=True)


if __name__ == "__main__":
    main()
