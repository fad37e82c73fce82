"""Our own objectives and combinations, chosen by the comparison in docs/objectives_comparison.md."""

from __future__ import annotations

from ssl_kd.objectives.presets.papers import DLKD_ALIGNMENT, DLKD_CORRELATION, QUEUE, SIMREG
from ssl_kd.objectives.presets.preset import Preset, alignment, correlation

# A head that can bend, and one that cannot: the second keeps the teacher's neighbours in the student's own embedding.
_CENTRED = (
    alignment("mlp", "cosine", space="centred"),
    alignment("bn", "cosine", space="centred"),
)
_STANDARDISED = (
    alignment("mlp", "mse", space="standardised"),
    alignment("bn", "mse", space="standardised"),
)


OURS: dict[str, Preset] = {
    "centred": Preset(
        (*_CENTRED, alignment("mlp", "cosine", of="tokens", space="centred")),
        "what runs took on 2026-11-29 and 30, and its name",
        "ours",
        "-",
        "(2 - 2 cos(g1(s), t)) + (2 - 2 cos(g2(s), t)) + (2 - 2 cos(g3(patches of s), patches of t)), t less its running mean; g1, g3: "
        "two layers, g2: linear and batch norm",
        "patches make stored targets large: `target_bits: 4`, or `centred_light` then",
    ),
    "bank": Preset(
        (correlation("queue", "bn", tau=0.07, batch="inside", size=8192, space="centred"),),
        "what a run takes that names none",
        "ours",
        "-",
        "KL(softmax(t Q / 0.07) || softmax(g(s) Q / 0.07)), t less its running mean, Q: 8,192 of them with the batch in it; g: linear and "
        "batch norm",
        "around the mean one temperature suits teachers whose cosines spread otherwise; embeddings alone, so stored targets are small",
    ),
    "bank_raw": Preset(
        (correlation("queue", "bn", tau=0.05, batch="inside", size=8192),),
        "what runs took on 2026-11-30, as `bank`",
        "ours",
        "-",
        "KL(softmax(t Q / 0.05) || softmax(g(s) Q / 0.05)), Q: 8,192 teacher embeddings with the batch in it; g: linear and batch norm",
        "the head is the lead over `lightly_v1`, whose head is linear; the temperature suits one teacher",
    ),
    "centred_light": Preset(
        _CENTRED,
        "`centred` without patches: for teachers that have none, and for stored targets",
        "ours",
        "-",
        "(2 - 2 cos(g1(s), t)) + (2 - 2 cos(g2(s), t)), t less its running mean",
        "-",
    ),
    "default": Preset(
        (*_STANDARDISED, alignment("mlp", "mse", of="tokens", space="standardised")),
        "what runs took until 2026-11-29, and its name: a config that says `default` means it still",
        "ours",
        "-",
        "MSE(g1(s), t) + MSE(g2(s), t) + MSE(g3(patches of s), patches of t), t standardised; g1, g3: two layers, g2: linear "
        "and batch norm",
        "each dimension of the teacher counts equally",
    ),
    "default_light": Preset(
        _STANDARDISED,
        "`default` without patches",
        "ours",
        "-",
        "MSE(g1(s), t) + MSE(g2(s), t), t standardised",
        "-",
    ),
    "drop_in": Preset(
        (
            alignment("mlp", "cosine", head="query"),
            correlation("cross", "mlp", comparison="top_k", neighbours=256, tau=(1.0, 0.01), weight=10.0, head="query"),
        ),
        "for a student that asks its teacher's index; `csd` beside an alignment, one head for both",
        "ours",
        "-",
        "2 - 2 cos(g(s), t) + 10 KL(softmax(t T / 0.01), softmax(g(s) T / 1)), T: the 256 teacher embeddings of the batch nearest to t; "
        "g: two layers",
        "not among those of the comparison; g stays in the student's file, and is what leads into the teacher's space",
    ),
    "simreg_queue": Preset(
        (SIMREG, QUEUE),
        "our combination of `simreg` and `queue`",
        "ours",
        "-",
        "L_simreg + L_queue",
        "the default before the comparison",
    ),
    "queue": Preset(
        (QUEUE,),
        "the family of SEED, CompRess-1q and LightlyTrain's distillation v1",
        "ours",
        "-",
        "KL(softmax(t Q / tau), softmax(g(s) Q / tau)), tau 0.07, Q: the batch and the 8,192 last teacher embeddings",
        "empty slots never take part; an older view of the own image is masked; SimReg's head",
    ),
    "dlkd_light": Preset(
        ({**DLKD_ALIGNMENT, "projector": "simreg"}, DLKD_CORRELATION),
        "`dlkd` with SimReg's head",
        "ours",
        "-",
        "20 L_align + 50 L_corr",
        "16 Dt hidden units are 84 M parameters for a ResNet-50 teacher; SimReg's head is 3.7 M",
        views="multi",
    ),
    "knn_soft": Preset(
        (correlation("queue", "simreg", comparison="nearest", batch="none", size=8192, neighbours=20),),
        "k-NN soft targets, after OSAKD (2108.11798)",
        "abstract",
        "posterior soft labels from k-NN density in the output features, online",
        "KL over the teacher's 20 nearest in the queue, each by itself, and all others as one outcome; tau 0.07",
        "class posteriors need labels; neighbours of a frozen teacher take their place",
    ),
    "target_ratio": Preset(
        (correlation("queue", "simreg", comparison="target_ratio", batch="none", size=8192, strength=1.0),),
        "proposal after AEKT (2409.01679) and DKD; not AEKT",
        "ours",
        "AEKT: transfer of the teacher's confidence in the target class, its strength by the teacher/student ratio "
        "(abstract; formula not available). DKD: alpha T^2 KL(b_t || b_s) + beta T^2 KL(p_t || p_s) off target",
        "y = the teacher's nearest in the queue; KL of the renormalised others + (log p_y - log q_y)^2 / 2; tau 0.07",
        "the nearest prototype plays the target class; the gradient on it is -log(p_y / q_y) (1 - q_y)",
    ),
}
