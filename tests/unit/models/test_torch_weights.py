"""PyTorch's weights in our models: the same logits as the PyTorch model with the same random weights."""

from resrep_dist.config import ModelConfig
from resrep_dist.errors import ModelError
from resrep_dist.models.building import build_model
from resrep_dist.models.files import load_weights

import numpy as np
import pytest

safetensors = pytest.importorskip("safetensors", reason="the extra `torch-weights` is not installed")
torch = pytest.importorskip("torch", reason="compares with PyTorch itself, which is not installed")
nn = torch.nn
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


class Block(nn.Module):
    """A block of torchvision's ResNet by its published parameter names; v1.5, the stride on the 3x3."""

    def __init__(self, channels, width, stride, is_bottleneck):
        super().__init__()
        kernels = (1, 3, 1) if is_bottleneck else (3, 3)
        widths = [channels, *[width] * (len(kernels) - 1), 4 * width if is_bottleneck else width]
        self.depth = len(kernels)
        for index, kernel in enumerate(kernels, start=1):
            step = stride if index == (2 if is_bottleneck else 1) else 1
            layer = nn.Conv2d(widths[index - 1], widths[index], kernel, step, kernel // 2, bias=False)
            setattr(self, f"conv{index}", layer)
            setattr(self, f"bn{index}", nn.BatchNorm2d(widths[index]))
        self.downsample = None
        if stride > 1 or channels != widths[-1]:
            convolution = nn.Conv2d(channels, widths[-1], 1, stride, bias=False)
            self.downsample = nn.Sequential(convolution, nn.BatchNorm2d(widths[-1]))

    def forward(self, x):
        y = x
        for index in range(1, self.depth + 1):
            y = getattr(self, f"bn{index}")(getattr(self, f"conv{index}")(y))
            y = torch.relu(y) if index < self.depth else y
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    def __init__(self, depth, num_classes):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        channels = 64
        for stage, num_blocks in enumerate(BLOCKS[depth], start=1):
            blocks = []
            for index in range(num_blocks):
                width, stride = 64 * 2 ** (stage - 1), 2 if stage > 1 and index == 0 else 1
                blocks.append(Block(channels, width, stride, depth >= 50))
                channels = 4 * width if depth >= 50 else width
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x):
        x = nn.functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        return self.fc(x.mean((2, 3)))


class Separable(nn.Module):
    """A block of timm's MobileNet-v1."""

    def __init__(self, channels, width, stride):
        super().__init__()
        self.conv_dw = nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(width)
        self.conv_pw = nn.Conv2d(channels, width, 1, bias=False)

    def forward(self, x):
        return torch.relu(self.bn2(self.conv_pw(torch.relu(self.bn1(self.conv_dw(x))))))


class MobileNet(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv_stem, self.bn1 = nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32)
        channels, stages = 32, []
        for width, num_blocks, stride in ((64, 1, 1), (128, 2, 2), (256, 2, 2), (512, 6, 2), (1024, 2, 2)):
            blocks = []
            for index in range(num_blocks):
                blocks.append(Separable(channels, width, stride if index == 0 else 1))
                channels = width
            stages.append(nn.Sequential(*blocks))
        self.blocks, self.classifier = nn.Sequential(*stages), nn.Linear(1024, num_classes)

    def forward(self, x):
        return self.classifier(self.blocks(torch.relu(self.bn1(self.conv_stem(x)))).mean((2, 3)))


def random_model(name):
    torch.manual_seed(0)
    model = (MobileNet(7) if name == "mobilenet_v1" else ResNet(int(name[6:]), 7)).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5)
            for tensor in (module.bias.data, module.running_mean):
                tensor.uniform_(-0.2, 0.2)
    return model


def save(model, path):
    from safetensors.torch import save_file

    save_file(model.state_dict(), path)


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "mobilenet_v1"])
def test_logits_are_those_of_pytorch(name, tmp_path):
    theirs, ours = random_model(name), build_model(ModelConfig(name, 7, 64))
    save(theirs, tmp_path / "weights.safetensors")
    load_weights(ours, tmp_path / "weights.safetensors")
    images = np.random.default_rng(0).normal(size=(4, 64, 64, 3)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
    outputs = ours.predict(images, verbose=0)
    assert np.abs(outputs - expected).max() < 1e-5 * np.abs(expected).max()
    assert np.ptp(expected) > 0.01


@pytest.mark.parametrize(
    "name, num_classes, expected",
    [
        ("resnet34", 7, "is missing in it"),
        ("resnet18", 10, "fc.weight is [512, 7] there and [512, 10] here"),
        ("resnet20", 7, "conv1.weight is [7, 7, 3, 64] there and [3, 3, 3, 16] here"),
        ("vgg16_cifar", 7, "has no name in torchvision"),
    ],
)
def test_weights_of_another_model_are_refused(name, num_classes, expected, tmp_path):
    save(random_model("resnet18"), tmp_path / "weights.safetensors")
    with pytest.raises(ModelError) as error:
        load_weights(build_model(ModelConfig(name, num_classes, 32)), tmp_path / "weights.safetensors")
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"\xff" * 64)
    with pytest.raises(ModelError, match="it cannot be read"):
        load_weights(build_model(ModelConfig("resnet18", 7, 32)), path)
