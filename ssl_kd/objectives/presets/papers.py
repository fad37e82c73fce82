"""Objectives of self-supervised distillation, each as published, or with the difference stated."""

from __future__ import annotations

from ssl_kd.objectives.presets.preset import Preset, alignment, correlation

DLKD_ALIGNMENT = alignment("dlkd", weight=20.0)
DLKD_CORRELATION = correlation("views", "square", tau=0.5, weight=50.0)
SIMREG = alignment("simreg")
QUEUE = correlation("queue", "simreg", size=8192)

# Empty slots as zeros and no image hidden from itself, which we would do otherwise: see MemoryBank.
LIGHTLY = correlation("queue", "linear", batch="inside", size=8192, every_slot=True)

_DLKD = Preset(
    (DLKD_ALIGNMENT, DLKD_CORRELATION),
    "Ding et al., DLKD (first MLKD), TNNLS 35(2):2425-2435; ifding/DLKD",
    "code",
    "CE + 50 L_corr + SupCon + 20 L_align; L_align = 2 - 2 cos(g(s), t), g: Ds -> 16 Dt -> Dt; L_corr = row-softmax KL of "
    "augmented against plain views, tau 0.5, head Ds -> Ds -> Ds",
    "20 L_align + 50 L_corr",
    "the two terms that need labels (CE, SupCon) are left out, which is our reconstruction; one plain and one augmented "
    "view instead of four rotations (`views: rot4` gives those)",
    views="multi",
)


SELF_SUPERVISED: dict[str, Preset] = {
    "dlkd": _DLKD,
    "mlkd": _DLKD,
    "simreg": Preset(
        (SIMREG,),
        "Navaneet et al., SimReg, BMVC 2021",
        "code",
        "2 - 2 cos(g(s), t), g: Ds -> 2 Ds -> Ds -> 2 Ds -> Dt",
        differs="AdamW instead of SGD unless you say `optimizer: sgd`",
    ),
    "seed": Preset(
        (correlation("queue", "seed", batch="own", size=65536, tau=(0.2, 1e-4)),),
        "Fang et al., SEED, ICLR 2021",
        "code",
        "CE(softmax([t t, t Q] / 1e-4), softmax([s t, s Q] / 0.2)), Q: 65,536 teacher embeddings, own one in front",
        differs="KL instead of CE (the same gradient); empty slots instead of random ones; name the teacher's own "
        "128-d head as `teacher_feature` where its file has one",
    ),
    "s2bnn": Preset(
        (alignment("seed", "unit_kl"),),
        "Shen et al., S2-BNN, CVPR 2021; szq0214/S2-BNN, distillation alone",
        "code",
        "CE(softmax(t / 0.2), softmax(g(s) / 0.2)) of unit outputs of 128 numbers, dimensions for classes; g: Linear, ReLU, Linear",
        differs="KL instead of CE (the same gradient); students of real numbers; name the teacher's own 128-d head as `teacher_feature` "
        "where its file has one: of wide features the softmax is nearly even",
        views="strong",
    ),
    "compress_1q": Preset(
        (correlation("queue", "linear", batch="none", size=128000, tau=0.04),),
        "Koohpayegani et al., CompRess, NeurIPS 2020; UMBCvision/CompRess",
        "code",
        "KL(softmax(t Q / 0.04) || softmax(g(s) Q / 0.04)), Q: 128,000 teacher embeddings, g linear; the batch joins after",
        differs="empty slots instead of random ones; an older view of the own image is masked",
    ),
    "compress_2q": Preset(
        (correlation("two_queues", "identity", size=128000, momentum=0.999, tau=0.04),),
        "CompRess, as above",
        "code",
        "KL(softmax(t Q_t / 0.04) || softmax(s Q_s / 0.04)), Q_s: what the student's moving average (0.999) said",
        differs="as compress_1q",
    ),
    "compress_2q_own": Preset(
        (correlation("two_queues", "identity", size=128000, momentum=0.0, tau=0.04),),
        "CompRess, the variant without momentum in its code",
        "code",
        "the same, Q_s: what the student itself said",
        differs="as compress_1q",
    ),
    "rrd": Preset(
        (correlation("queue", "linear", batch="inside", size=8192, teacher_width=128, tau=(0.02, 0.1)),),
        "RRD (2407.12073); giakoumoglou/distillers",
        "code",
        "CE(softmax(h(t) Q / 0.1), softmax(g(s) Q / 0.02)), g, h linear to 128; the batch joins Q first",
        differs="KL instead of CE; h is frozen at random, which is what its detached targets come to, and has no bias; "
        "queue length ours; temperatures of the class, the training scripts set others; used beside CE in the paper",
    ),
    "lightly_v1": Preset(
        (LIGHTLY,),
        "LightlyTrain, distillation v1",
        "code",
        "KL(softmax(t Q / 0.07) || softmax(g(s) Q / 0.07)), g linear, Q: 8,192 with the batch in it",
        differs="the loss is equal to float precision; other first weights of g",
        mix="mixup",
    ),
    "lightly_v3": Preset(
        (LIGHTLY, correlation("tokens", "linear", sampled=True)),
        "LightlyTrain, distillation v3",
        "code",
        "v1 + per image KL of row softmaxes of the patch Gram matrices, tau 0.07; g(s) laid over the teacher's grid bilinearly",
        differs="as v1",
        mix="mixup",
    ),
    "lightly_v2": Preset(
        (alignment("linear", "mse", of="tokens"),),
        "LightlyTrain, distillation v2",
        "code",
        "MSE(g(patches), patches of the teacher's last two blocks), g linear; g(s) laid over the teacher's grid bilinearly",
        differs="the last block alone; means over cells where the teacher's grid is the coarser; other first weights of g",
        mix="mixup",
    ),
    "ega": Preset(
        (
            correlation("across", "linear", comparison="frobenius", head="ega"),
            correlation("pearson", "linear", comparison="frobenius", weight=0.3, head="ega"),
        ),
        "EGA (2211.13264), BMVC 2022",
        "code",
        "|C_ts - I|_F + 0.3 |C_tt - C_ss|_F, C: Pearson correlations between samples, one linear head",
        differs="used beside CE in the paper; weights of the class, the training scripts set 0.8 and 0.24; no head on the teacher's side. "
        "Not lowest at a match: other samples shall be uncorrelated",
    ),
    "smd": Preset(
        (
            {"term": "hard_pairs", "projector": "linear", "tau": 0.04, "head": "smd"},
            alignment("linear", weight=0.5, until=2, head="smd"),
        ),
        "SMD, ECCV 2022; liuhao-lh/SMD",
        "code",
        "CE over weighted distances to the hardest far and near sample, tau 0.04; - cos(g(s), t) in the first two epochs",
        differs="2 - 2 cos at half weight, which differs by a constant. Its gradient vanishes at a match; its value is log 2 "
        "there",
        views="two_strong",
    ),
    "proteus": Preset(
        (alignment("layernorm", "mse"), alignment("layernorm", "mse", of="tokens")),
        "Proteus",
        "code",
        "MSE(class token) + MSE(all tokens) + MSE(masked tokens), heads LayerNorm + Linear",
        differs="no third term: `proteus_masked` has it; the mean over all tokens leaves the class token out, "
        "which has a term of its own",
    ),
    "theia": Preset(
        (alignment("mlp", "theia", of="tokens", space="standardised"),),
        "Theia",
        "code",
        "0.9 (1 - cos) + 0.1 smooth L1 on standardised teacher maps, convolutional translators",
        differs="running mean and variance instead of a pass over the data before; a two-layer head per patch; the cosine is of the "
        "whole map as one vector, as there",
    ),
    "unic": Preset(
        (
            alignment("mlp", "unic", space="standardised", weight=0.5),
            alignment("mlp", "unic", of="tokens", space="standardised", weight=0.5),
        ),
        "Sariyildiz et al., UNIC, ECCV 2024; naver/unic",
        "code",
        "mean over class token and patches of 0.5 (1 - cos) + 0.5 smooth L1 to standardised teachers, heads on every block",
        differs="heads on the last features only, Linear, batch norm, ReLU, Linear of width 2 Dt where theirs is Linear, GELU, Linear "
        "of width 3,072; running statistics of constant momentum, theirs of one that changes over the run; one teacher",
    ),
    "attn_distill": Preset(
        (
            alignment("simreg", "mse"),
            {
                "term": "correlation",
                "relation": "class_attention",
                "student_layers": ("blocks.-1.attn.attn_drop",),
                "teacher_layers": ("blocks.-1.attn.attn_drop",),
                "tau_student": 1.0,
                "tau_teacher": 1.0,
                "weight": 0.1,
            },
        ),
        "AttnDistill, BMVC 2022",
        "code",
        "MSE(g(CLS), CLS) + 0.1 KL(A_t || A_s), A: what the last class token looks at, per head",
        differs="ViT to ViT; the KL is a mean over images and heads, theirs a sum over heads; SimReg's head (batch norm, ReLU), theirs "
        "LayerNorm and GELU; of another grid, what bicubic makes negative is 0 before the class token's share is given back, there behind",
    ),
}
