#!/usr/bin/env bash
# torch 2.13.0: `module.compile()` compiles nothing where the module is one of torch's own (Linear, LayerNorm, Sequential,
# TransformerEncoderLayer), and says so only with fullgraph=True, by an error. `torch.compile(module)` compiles each of
# them, and `module.compile()` compiles a class of one's own, also one that only calls a Linear.
#
# Guessed beforehand: both spellings do the same, as the documentation of Module.compile says that it passes all
# arguments to torch.compile.
#
# It matters to whoever compiles a model part by part, in place, so that the names of weights stay: parts that are plain
# Sequentials or Linears run uncompiled without a word.
#
# Seen on 2026-12-01 (Python 3.11, CPU), as the number of graphs that one call compiles:
#   Linear, LayerNorm, Sequential, TransformerEncoderLayer: torch.compile(module) 1, module.compile() 0,
#   torch.compile(module, fullgraph=True) 1, module.compile(fullgraph=True): RuntimeError "torch.compile with
#   fullgraph=True found no compiled frames"
#   a class of one's own that calls a Linear: 1, 1, 1, 1
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cat > "$folder/show.py" <<'PYTHON'
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(16, 16)

    def forward(self, x):
        return self.inner(x)


MAKERS = {
    "Linear": lambda: nn.Linear(16, 16),
    "LayerNorm": lambda: nn.LayerNorm(16),
    "Sequential": lambda: nn.Sequential(nn.Linear(16, 16)),
    "TransformerEncoderLayer": lambda: nn.TransformerEncoderLayer(16, 2, batch_first=True),
    "Own": Own,
}


def graphs(make, in_place, fullgraph):
    """How many graphs one call compiles, or the beginning of the error."""
    torch._dynamo.reset()
    counter, module = CompileCounter(), make()
    if in_place:
        module.compile(backend=counter, fullgraph=fullgraph)
    else:
        module = torch.compile(module, backend=counter, fullgraph=fullgraph)
    try:
        module(torch.randn(2, 3, 16))
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return counter.frame_count


print("torch", torch.__version__)
for name, make in MAKERS.items():
    found = {
        "torch.compile(module)": graphs(make, False, False),
        "module.compile()": graphs(make, True, False),
        "torch.compile(module, fullgraph=True)": graphs(make, False, True),
        "module.compile(fullgraph=True)": graphs(make, True, True),
    }
    print(name, found)
    assert found["torch.compile(module)"] == found["torch.compile(module, fullgraph=True)"] == 1, "it has changed"
    if name == "Own":
        assert found["module.compile()"] == found["module.compile(fullgraph=True)"] == 1, "it has changed"
    else:
        assert found["module.compile()"] == 0, "it compiles now"
        assert "found no compiled frames" in str(found["module.compile(fullgraph=True)"]), "it compiles now"
PYTHON
OMP_NUM_THREADS=1 "$folder/venv/bin/python" "$folder/show.py"
