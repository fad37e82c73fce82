"""Distillation of classes, with prototypes of the teacher's space in their place: spherical k-means on the images of a run."""

from __future__ import annotations

from ssl_kd.objectives.presets.preset import Preset, Spec

MDISTILLER = "megvii-research/mdistiller"
ANCHORS = "1,024 prototypes (spherical k-means) instead of classes"


def on_prototypes(comparison: str, **more: object) -> Spec:
    """A row's term on prototypes."""
    shared = {"term": "correlation", "relation": "prototypes", "projector": "simreg", "prototypes": 1024}
    return shared | {"comparison": comparison} | more


def _taus(tau: float) -> dict[str, float]:
    return {"tau_student": tau, "tau_teacher": tau}


CLASS_TOKENS: Spec = {
    "term": "correlation",
    "relation": "teacher_head",
    "comparison": "sinkhorn",
    "projector": "identity",
    "tau_student": 0.1,
    "tau_teacher": 1.0,
}
_HEADS = (
    "distillation with frozen heads, DINOv3; facebookresearch/dinov3",
    "CE(sinkhorn(head_t(t) / tau_t), softmax(head_s(s) / 0.1)) of class tokens, the same of masked patches by a second head (iBOT), "
    "and KoLeo; head_t frozen, head_s trained",
)

ON_PROTOTYPES: dict[str, Preset] = {
    "kd": Preset(
        (on_prototypes("kd", tau=0.025, temperature=4.0),),
        f"Hinton et al. 2015; {MDISTILLER}",
        "third-party",
        "0.9 T^2 KL(softmax(z_t / T) || softmax(z_s / T)) + 0.1 CE, T 4, on class logits z",
        "T^2 KL of softmaxes of z / T, z = cosines to prototypes / 0.025, T 4",
        f"{ANCHORS}; no CE on labels; SimReg's head; the scale 0.025 is ours",
    ),
    "dkd": Preset(
        (on_prototypes("dkd", tau=0.025, temperature=4.0, target=1.0, others=8.0),),
        f"DKD, CVPR 2022; {MDISTILLER}",
        "third-party",
        "T^2 (1 KL of (p_y, 1 - p_y) + 8 KL of the renormalised others) + CE, T 4, y the label",
        "the same with z = cosines to prototypes / 0.025, y = the teacher's nearest prototype",
        f"{ANCHORS}; no CE on labels; no warm-up of 20 epochs (say `warmup: 20`); SimReg's head",
    ),
    "aekt": Preset(
        (on_prototypes("target_ratio", strength=1.0, **_taus(0.1)),),
        "AEKT (2409.01679)",
        "abstract",
        "explicit knowledge (the teacher's confidence in the target class) transferred with a strength that follows the "
        "teacher/student ratio, beside implicit knowledge (the others); a further layer takes the classification",
        "y = the teacher's nearest prototype; KL of the renormalised others + (log p_y - log q_y)^2 / 2, whose gradient on y is "
        "-log(p_y / q_y) (1 - q_y); tau 0.1",
        f"{ANCHORS}; without a classification there is no layer for it; `target_ratio` is this on a memory bank",
    ),
    "clkd_prototypes": Preset(
        (on_prototypes("class_level", tau=0.1),),
        "CLKD (2211.14773)",
        "third-party",
        "MSE of unit rows + MSE of unit columns of the logits + |covariance of classes, difference|_F / C^2",
        "the same on cosines to prototypes / 0.1",
        f"{ANCHORS}; covariances divided by N - 1, there by C - 1; weights 1; no CE on labels; `clkd` is the form on dimensions",
    ),
    "dist_prototypes": Preset(
        (on_prototypes("rows_and_columns", **_taus(0.1)),),
        "DIST; hunto/DIST_KD",
        "code",
        "(1 - rho of rows) + (1 - rho of columns) of softmax outputs, rho Pearson",
        "the same on softmaxes of cosines to prototypes, tau 0.1",
        f"{ANCHORS}; SimReg's head; the temperature is ours; `dist` is the form on a memory bank",
    ),
    "heads": Preset(
        (CLASS_TOKENS,),
        _HEADS[0],
        "code",
        _HEADS[1],
        "KL(sinkhorn(head_t(t) / tau_t) || softmax(head_s(s) / 0.1)), head_t from the teacher's file, tau_t its own",
        "KL instead of CE (the same gradient); class tokens alone, for DINO, SwAV and MSN, whose files have no head for patches; no "
        "KoLeo, which pushes images apart; not zero at a match, as Sinkhorn moves the teacher",
    ),
    "retro": Preset(
        ({**CLASS_TOKENS, "projector": "simreg", "own_head": False},),
        "Retro, reuse of the teacher's projection head",
        "abstract",
        "the teacher's projection head, frozen, behind an adapter on the student; a contrastive term and one of consistency",
        "KL(sinkhorn(head_t(t) / tau_t) || softmax(head_t(g(s)) / 0.1)), head_t from the teacher's file, tau_t its own",
        "the term of `heads` in place of theirs, which push samples apart; SimReg's head is the adapter. RoB (2301.09451), where the "
        "student keeps a head of its own, is `heads` itself",
    ),
    "heads_ibot": Preset(
        (CLASS_TOKENS, {"term": "masked_head", "weight": 1.0}),
        _HEADS[0],
        "code",
        _HEADS[1],
        "the first two, with the heads of an iBOT checkpoint (or of a DINOv2 or DINOv3 run) for class tokens and for patches",
        "KL instead of CE (the same gradient); single patches instead of blocks, hidden as grey pixels instead of by a mask token, and in "
        "a second look of the student, so that its class token sees the whole image; no KoLeo",
    ),
    "boundary": Preset(
        (
            {"term": "boundary", "projector": "simreg", "prototypes": 1024, "tau": 0.1, "steps": 1, "head": "boundary"},
            {**on_prototypes("softmax_kl", **_taus(0.1)), "head": "boundary"},
        ),
        "boundary supporting samples, BSS, AAAI 2019",
        "abstract",
        "images are moved by an adversarial attack to a boundary between two classes, and the student matches the teacher there",
        "KL of softmaxes of cosines to prototypes / 0.1, on the images and on the same moved to where the student's two nearest "
        "prototypes are equally near",
        f"{ANCHORS}; no labels and all images; one Newton step along the student's gradient. A step costs one more pass of the student "
        "forward and backward, one more in training and one more of the teacher",
    ),
}
