"""Newer objectives: for asymmetric retrieval, for several teachers, and those that came with foundation models."""

from __future__ import annotations

from ssl_kd.objectives.presets.preset import Preset, alignment, correlation

_STAGES = ("stage.1", "stage.2", "stage.3", "stage.4")

NEWEST: dict[str, Preset] = {
    "csd": Preset(
        (correlation("cross", "linear", comparison="top_k", neighbours=256, tau=(1.0, 0.01), weight=10.0),),
        "contextual similarity distillation, CVPR 2022; SCY-X/D3still",
        "third-party",
        "10 KL(softmax(t T / 0.01) || softmax(g(s) T / 1)), T: the 256 teacher embeddings of the batch nearest to t",
        differs="a linear head where widths differ (theirs is the network's own last layer); used beside CE and triplets there; the "
        "first paper takes the gallery's nearest instead of the batch's. The temperatures differ, so that its smallest value is not 0",
    ),
    "d3still": Preset(
        (correlation("cross", "linear", comparison="differences", neighbours=10, own=100.0, wrong=5.0, right=1.0),),
        "D3still, CVPR 2024; SCY-X/D3still",
        "code",
        "100 |1 - s t| / N + errors of the differences between similarities to the teacher's 9 next, weights 5 in the wrong order, 1 "
        "in the right one",
        differs="a linear head where widths differ; used beside CE and triplets there; weights of the training scripts, the defaults "
        "are 50, 2 and 1",
    ),
    "itrd": Preset(
        (
            {"term": "renyi_correlation", "projector": "linear", "alpha": 1.5, "weight": 2.0, "head": "itrd"},
            {"term": "renyi_mutual", "projector": "linear", "weight": 0.05, "head": "itrd"},
        ),
        "ITRD, BMVC 2022 (2112.00459); roymiles/ITRD",
        "code",
        "2 log2 sum_d |c_d - 1|^3 + 0.05 (sum G_s^2 - sum (G_s G_t)^2) / N^2, c_d: correlation over the batch of dimension d of g(s) with "
        "t's, G: cosines of samples, g linear",
        differs="used beside CE in the paper; g in the second term also where widths are equal; a dimension that rests has c_d = 0, "
        "there no number. The first term is lowest at a match (not 0), the second is not: it spreads samples out",
    ),
    "radio": Preset(
        (
            alignment("mlp", "balanced", space="phi_s"),
            alignment("mlp", "balanced", of="tokens", space="phi_s"),
        ),
        "RADIO's training code, loss `balanced` with PHI-S; NVIDIA-TAO/tao-pytorch",
        "code",
        "0.9 (1 - cos) + 0.1 smooth L1 (corner at 2) of maps, teacher and g(s) both standardised by PHI-S, g: two layers",
        differs="the embedding in the same way beside the map, which stands alone there; g predicts the standardised teacher itself; the "
        "matrix is made anew at powers of two of the steps, not every 100; our two-layer head",
    ),
    "cospress": Preset(
        ({"term": "compressed", "of_tokens": True, "weight": 1.0},),
        "CosPress, TMLR 2025 (2411.15239); emannix/cospress",
        "code",
        "1 - cos(s, sg h(t)) of class token and map; h, LayerNorm + Linear on the teacher, keeps cosines between images and "
        "between patches: KL of symmetrised softmaxes, mean over temperatures 0.01 to 0.10",
        differs="patches without the class token, which has a term of its own. Lowest at a match of h's cosines and of s with h(t)",
    ),
    "cospress_light": Preset(
        ({"term": "compressed", "weight": 1.0},),
        "`cospress` without patches: for stored targets and networks without any",
        "ours",
        "1 - cos(s, sg h(t)) of class token and map; h keeps cosines between images and between patches",
        "1 - cos(s, sg h(t)), h keeps the cosines between images",
        "embeddings alone",
    ),
    "leap": Preset(
        ({"term": "progression", "teacher_layers": _STAGES, "weight": 1.0},),
        "LEAP (2606.19483); KevinZ0217/LEAP",
        "code",
        "MSE(g(patches), patches of teacher block b) + 0.05 MSE(g(class token), that of block b); b starts where linear CKA is highest and "
        "goes one deeper at a CKA of 0.85, or after 5 epochs; the teacher stops at b",
        differs="four stages instead of every block (name more with `teacher_layers`); running standardisation of each instead of the "
        "teacher's last LayerNorm; a head of its own for the class token; no reset of the learning rate",
    ),
    "unic_ladder": Preset(
        (
            {"term": "ladder", "student_layers": _STAGES, "weight": 0.5},
            {"term": "ladder", "student_layers": _STAGES, "of": "tokens", "weight": 0.5},
        ),
        "Sariyildiz et al., UNIC, ECCV 2024; naver/unic",
        "code",
        "mean over class token and patches of 0.5 (1 - cos) + 0.5 smooth L1 between standardised teachers and the sum of heads on every "
        "block: Linear -> 768 (the last 3,072), GELU, Linear",
        differs="heads on four stages, not on every block (name more with `student_layers`); running statistics of constant momentum; "
        "one teacher; `unic` is the form with heads on the last features alone",
    ),
    "proteus_masked": Preset(
        (
            alignment("layernorm", "mse"),
            alignment("layernorm", "mse", of="tokens"),
            {"term": "masked_tokens", "projector": "layernorm", "distance": "mse", "weight": 1.0},
        ),
        "Proteus, CVPR 2025; BeSpontaneous/Proteus-pytorch",
        "code",
        "MSE(class token) + MSE(all tokens) + MSE(masked tokens), heads LayerNorm + Linear; half of the patches of half of the images",
        differs="single patches instead of blocks, hidden as grey pixels instead of by a mask token, so that any student with patches "
        "can take them; the mean over all tokens leaves the class token out. One more pass of the student a step; "
        "`proteus` is the form without",
    ),
}
