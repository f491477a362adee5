"""Dropout of features that are mostly zeros."""

import torch

from regbench.backbones.graph import FeatureDropout


def test_feature_dropout_is_dropout():
    """Each entry that is not zero is kept with probability 1 − p and then divided by it; zeros stay."""
    torch.manual_seed(0)
    features = (torch.rand(400, 100) < 0.1) * torch.rand(400, 100)
    dropout = FeatureDropout(0.25)
    dropped = dropout.train()(features)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], features[kept] / 0.75)
    assert not kept[features == 0].any()
    share = kept.sum() / (features != 0).sum()
    assert abs(share - 0.75) < 0.045  # about 4,000 draws: six standard deviations
    assert not dropout(features).equal(dropped)
    assert dropout.eval()(features) is features


def test_feature_dropout_sees_other_features():
    dropout = FeatureDropout(0.5).train()
    for place in (0, 5):
        features = torch.zeros(2, 3)
        features.view(-1)[place] = 1
        for _ in range(8):
            assert dropout(features)[features == 0].abs().sum() == 0
        assert any(dropout(features).sum() > 0 for _ in range(40))
