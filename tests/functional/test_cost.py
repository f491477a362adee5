"""Parameters and multiply-accumulates against counts by hand."""

import torch
from torch import nn

from regbench.functional.cost import Cost, cost_of, macs_of_modules


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1, groups=1)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        return self.fc(self.depthwise(self.norm(self.conv(x))).mean((2, 3)))


def test_counts_by_hand():
    """On 6 × 6 pixels the strided convolution leaves 3 × 3; norms and means cost nothing."""
    network = Two()
    conv, depthwise, fc = 9 * 8 * 27, 9 * 8 * 9, 8 * 5
    params = 8 * 27 + 8 + 16 + 8 * 9 + 45
    assert cost_of(network, (3, 6, 6)) == Cost(params, conv + depthwise + fc)
    expected = {"": conv + depthwise + fc, "conv": conv, "depthwise": depthwise, "fc": fc}
    assert macs_of_modules(network, (3, 6, 6)) == expected


def test_counting_leaves_the_network_alone_and_works_in_inference_mode():
    network = Two()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with torch.inference_mode():
        assert cost_of(network, (3, 6, 6)).macs == 9 * 8 * 27 + 9 * 8 * 9 + 40
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(p.device.type == "cpu" for p in network.parameters())
