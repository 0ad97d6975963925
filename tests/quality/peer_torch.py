"""One run of Torch-Pruning on a ResNet for CIFAR, for `python -m tests.quality.peers`, in PyTorch's own environment.

    python peer_torch.py TASK.json

It knows nothing of resrep_dist: weights come and go as arrays by the names of our layers, batches as arrays on disk.
The model is pruned in steps over the first third of the run, by one global ranking over all layers, until its
multiply-adds are on a straight line from 1 to the target; it is trained in between and after it.
"""

import json
import math
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
import torch_pruning as pruning
from torch import nn
from torch.nn import functional

NUM_PRUNINGS = 10
# Each call of the pruner takes this share of the channels of the whole model.
NUM_SMALL_STEPS = 400


class Network(nn.Module):
    """ResNet of depth 6n + 2, with the choices of `resrep_dist/models/resnet_cifar.py`."""

    def __init__(self, num_blocks, num_classes):
        super().__init__()
        self.layers = nn.ModuleDict()
        self._add("stem", 3, 16, 3, 1)
        self.blocks, width = [], 16
        for stage, of_stage in enumerate((16, 32, 64), start=1):
            for block in range(1, num_blocks + 1):
                name, stride = f"stage{stage}_block{block}", 2 if stage > 1 and block == 1 else 1
                if stride > 1:
                    self._add(f"{name}_projection", width, of_stage, 1, stride)
                self._add(f"{name}_conv1", width, of_stage, 3, stride)
                self._add(f"{name}_conv2", of_stage, of_stage, 3, 1)
                self.blocks.append(name)
                width = of_stage
        self.layers["logits"] = nn.Linear(width, num_classes)

    def _add(self, name, width_in, width_out, size, stride):
        self.layers[name] = nn.Conv2d(width_in, width_out, size, stride, size // 2, bias=False)
        self.layers[batch_norm_of(name)] = nn.BatchNorm2d(width_out, momentum=0.1)

    def _normalized(self, x, name):
        return self.layers[batch_norm_of(name)](self.layers[name](x))

    def forward(self, x):
        x = functional.relu(self._normalized(x, "stem"))
        for name in self.blocks:
            shortcut = self._normalized(x, f"{name}_projection") if f"{name}_projection" in self.layers else x
            x = functional.relu(self._normalized(x, f"{name}_conv1"))
            x = functional.relu(self._normalized(x, f"{name}_conv2") + shortcut)
        return self.layers["logits"](x.mean((2, 3)))


def batch_norm_of(name):
    """stem -> stem_bn, stage1_block1_conv1 -> stage1_block1_bn1."""
    return name.replace("_conv", "_bn") if "_conv" in name else f"{name}_bn"


def parameters_of(layer):
    """The parameters of a layer in Keras' order, with the transposition from Keras' axes."""
    if isinstance(layer, nn.BatchNorm2d):
        return [(tensor, None) for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var)]
    if isinstance(layer, nn.Linear):
        return [(layer.weight, (1, 0)), (layer.bias, None)]
    return [(layer.weight, (3, 2, 0, 1))]


def load(model, path):
    with np.load(path) as arrays, torch.no_grad():
        for name, layer in model.layers.items():
            for index, (tensor, axes) in enumerate(parameters_of(layer)):
                array = arrays[f"{name}/{index}"]
                tensor.copy_(torch.from_numpy(np.ascontiguousarray(array.transpose(axes) if axes else array)))


def save(model, path):
    arrays = {}
    for name, layer in model.layers.items():
        for index, (tensor, axes) in enumerate(parameters_of(layer)):
            array = tensor.detach().cpu().numpy()
            arrays[f"{name}/{index}"] = array.transpose(np.argsort(axes)) if axes else array
    np.savez(path, **arrays)


def make_pruner(criterion, model, example):
    criterion, _, rounding = criterion.partition(", multiples of ")
    importance, kind = {
        "magnitude": (pruning.importance.GroupMagnitudeImportance(p=2), pruning.pruner.BasePruner),
        "batch_norm_scale": (pruning.importance.BNScaleImportance(), pruning.pruner.BNScalePruner),
        "taylor": (pruning.importance.GroupTaylorImportance(), pruning.pruner.BasePruner),
        "fpgm": (pruning.importance.FPGMImportance(), pruning.pruner.BasePruner),
    }[criterion]
    return kind(
        model,
        example,
        importance=importance,
        global_pruning=True,
        pruning_ratio=1.0,
        max_pruning_ratio=0.95,
        iterative_steps=NUM_SMALL_STEPS,
        round_to=int(rounding) if rounding else None,
        ignored_layers=[model.layers["logits"]],
    )


def make_optimizer(model, task):
    kernels = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [{"params": kernels, "weight_decay": task["weight_decay"]}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=task["rates"][0], momentum=task["momentum"])


def multiply_adds(model, example):
    """Those of convolutions and the dense layer, as resrep_dist counts them."""
    counts = []
    hooks = [
        layer.register_forward_hook(lambda layer, _, output: counts.append(layer.weight.numel() * output[0, 0].numel()))
        for layer in model.layers.values()
        if not isinstance(layer, nn.BatchNorm2d)
    ]
    was_training = model.training
    model.eval()
    with torch.no_grad():
        model(example)
    model.train(was_training)
    for hook in hooks:
        hook.remove()
    return sum(counts)


def find_device():
    """The GPU if there is one, deterministic by cuDNN, without TF32: outputs are compared with Keras'."""
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def logits_of(model, images, device):
    """Those of a batch [N, H, W, C] of a file."""
    return model(torch.from_numpy(np.array(images).transpose(0, 3, 1, 2).copy()).to(device))


def main():
    task = json.loads(Path(sys.argv[1]).read_text())
    torch.manual_seed(task["seed"])
    torch.set_num_threads(1)
    device = find_device()
    images, labels = (np.load(task[name], mmap_mode="r") for name in ("images", "labels"))
    model = Network((task["depth"] - 2) // 6, task["num_classes"]).to(device)
    load(model, task["weights"])
    model.eval()
    with torch.no_grad():
        first = logits_of(model, images[0], device).cpu().numpy()
    example = torch.zeros(1, 3, *images.shape[2:4], device=device)
    base_macs = multiply_adds(model, example)
    pruner, optimizer = make_pruner(task["criterion"], model, example), make_optimizer(model, task)
    num_steps, target = len(task["rates"]), task["target_macs_fraction"]
    times = {max(1, round(num_steps / 3 * number / NUM_PRUNINGS)): number for number in range(1, NUM_PRUNINGS + 1)}
    last_pruning, macs_of_steps, macs = max(times), 0.0, base_macs
    for step, rate in enumerate(task["rates"]):
        model.train()
        for group in optimizer.param_groups:
            group["lr"] = rate
        wanted_classes = torch.from_numpy(np.array(labels[step])).to(device)
        loss = functional.cross_entropy(logits_of(model, images[step], device), wanted_classes)
        optimizer.zero_grad()
        loss.backward()
        if step < last_pruning and task["criterion"] == "batch_norm_scale":
            pruner.regularize(model)
        optimizer.step()
        macs_of_steps += macs / base_macs / num_steps
        if not math.isfinite(loss.item()):
            raise RuntimeError(f"step {step}: the loss is {loss.item()}")
        if step in times:
            # The gradients of this batch are those that the Taylor criterion takes.
            wanted = base_macs * (1 - (1 - target) * times[step] / NUM_PRUNINGS)
            while macs > wanted:
                before = macs
                pruner.step()
                macs = multiply_adds(model, example)
                if macs == before and pruner.current_step >= pruner.iterative_steps:
                    raise RuntimeError(f"no more to prune at {macs / base_macs:.3f} of the multiply-adds")
            # What is left has other parameters, which begin at rest.
            optimizer = make_optimizer(model, task)
    model.eval()
    with torch.no_grad():
        last = logits_of(model, images[0], device).cpu().numpy()
    save(model, task["output"])
    np.savez(task["logits"], first=first, last=last)
    report = {"macs_fraction": macs / base_macs, "macs_vs_plain": macs_of_steps}
    report["versions"] = f"Torch-Pruning {metadata.version('torch-pruning')}, PyTorch {torch.__version__}"
    Path(task["report"]).write_text(json.dumps(report))


if __name__ == "__main__":
    main()
