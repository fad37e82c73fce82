"""Classic distillation in its representation form, and label-free forms of systems whose own form needs classes."""

from __future__ import annotations

from ssl_kd.objectives.presets.preset import Preset, alignment, correlation, stage

_REPDISTILLER = "HobbitLong/RepDistiller"

CLASSICS: dict[str, Preset] = {
    "fitnets": Preset(
        (
            alignment("linear", "mse", of="tokens", weight=100.0, **stage(2)),
            alignment("linear", "mse", of="tokens", weight=100.0),
        ),
        f"FitNets; {_REPDISTILLER}",
        "third-party",
        "100 MSE(regressor(hint of a middle layer), teacher's layer)",
        "the same, and 100 MSE of the last maps, without which nothing would teach the layers behind the hint",
        differs="the second of four stages is the middle; a linear map per cell, where the regressor is a convolution, batch norm and ReLU",
    ),
    "at": Preset(
        tuple(
            correlation("attention_map", "identity", comparison="l2", weight=1000.0, **stage(k)) for k in (1, 2, 3, 4)
        ),
        f"attention transfer; {_REPDISTILLER}",
        "third-party",
        "1000 MSE of the unit maps mean_c F_c^2, at every stage",
    ),
    "fsp": Preset(
        (
            {
                "term": "correlation",
                "relation": "flow",
                "comparison": "l2",
                **stage(3, 4),
                "weight": 50.0,
            },
        ),
        f"flow of solution procedure; {_REPDISTILLER}",
        "third-party",
        "50 MSE of the channel products (mean over cells) of neighbouring stages",
        differs="the last pair of stages; a linear map per student layer where widths differ (published: equal widths only); "
        "the published script trains this term before the others, and its weight of 50 never reaches that loss",
    ),
    "nst": Preset(
        tuple({"term": "selectivity", "weight": 50.0, **stage(k)} for k in (1, 2, 3, 4)),
        f"neuron selectivity transfer; {_REPDISTILLER}",
        "third-party",
        "50 MMD^2 of the channels' unit maps at every stage, kernel <a, b>^2",
    ),
    "vid": Preset(
        tuple(
            {"term": "variational", "of": "tokens", "projector": "vid", "weight": 1.0, **stage(k)} for k in (1, 2, 3, 4)
        ),
        f"variational information distillation, CVPR 2019; its authors' code in {_REPDISTILLER}",
        "code",
        "mean of ((g(s) - t)^2 / v + log v) / 2 at every stage, g: three 1 x 1 convolutions, v trained per channel, 5 at first",
        differs="lowest at a match for given v, where its value is the mean of log v / 2",
    ),
    "ft": Preset(
        ({"term": "factors", "rate": 0.5, "strength": 500.0, "weight": 1.0},),
        "factor transfer, NeurIPS 2018; Jangho-Kim/Factor-Transfer-pytorch",
        "code",
        "500 mean |unit factors of s - unit factors of t| of the last maps; factors of t: the code, of half the channels, of an "
        "autoencoder (the paraphraser) trained by |decoded - map|; of s: three convolutions (the translator)",
        differs="the paraphraser learns beside the student, not in five epochs before it; the larger map of factors is pooled to the "
        "smaller. 132 million numbers for a ResNet-50 teacher, 5 million for a ViT-S",
    ),
    "sp": Preset(
        (correlation("products", "identity", comparison="row_unit_l2", weight=3000.0),),
        f"similarity-preserving; {_REPDISTILLER}",
        "third-party",
        "3000 |rows of F_s F_s^T - rows of F_t F_t^T|^2 / N^2, rows of length 1",
        differs="one embedding per image instead of a flattened map",
    ),
    "rkd": Preset(
        (
            correlation("distances", "identity", comparison="huber", weight=25.0),
            correlation("angles", "identity", comparison="huber", weight=50.0),
        ),
        f"relational distillation; {_REPDISTILLER}",
        "third-party",
        "25 Huber(distances / their mean) + 50 Huber(cosines of the angles of all triplets)",
        differs="angles among the first 128 samples of a batch; two equal samples have no direction, and count as a right angle",
    ),
    "pkt": Preset(
        (correlation("gram", "identity", comparison="pkt", weight=30000.0),),
        f"probabilistic knowledge transfer; {_REPDISTILLER}",
        "third-party",
        "30000 mean p log(p / q), p, q: rows of (1 + cos) / 2 divided by their sums",
    ),
    "cc": Preset(
        (correlation("kernel", "identity", comparison="l2"),),
        "correlation congruence (1904.01802), in public re-implementations",
        "third-party",
        "MSE of Gaussian kernel matrices (Taylor series of order 2, gamma 0.4) of unit vectors",
        differs="no embedding to 128 numbers before; weight 1. RepDistiller has another form, which depends on the order of "
        "the batch",
    ),
    "dist": Preset(
        (correlation("queue", "linear", comparison="rows_and_columns", batch="inside", size=8192, tau=0.1),),
        "DIST; hunto/DIST_KD",
        "code",
        "(1 - rho of rows) + (1 - rho of columns) of softmax outputs, rho Pearson",
        "the same on softmaxes of similarities to the teacher queue, tau 0.1",
        "queue entries take the place of classes; the temperature is ours",
    ),
}

SYSTEMS: dict[str, Preset] = {
    "r2kd": Preset(
        (alignment("simreg", "pearson"), correlation("batch", "square", comparison="rank", tau=0.1)),
        "R2KD (2311.13934)",
        "abstract",
        "a correlation distance, value-based (Pearson) and rank-based, between predictions; a pruned copy of the teacher",
        "1 - rho(g(s), t) + 1 - rho of soft ranks of each row of the batch's cosines",
        "weights 1 and 1 and the soft rank are ours; the pruned copy is a second teacher, `prune: 0.3` (below)",
    ),
    "ckd": Preset(
        (alignment("simreg", "difference", space="standardised"),),
        "Comparative KD (2311.02253)",
        "abstract",
        "match the differences s_i - s_j and t_i - t_j between samples",
        "mean over pairs of |(g(s_i) - g(s_j)) - (t_i - t_j)|^2 = 2 N / (N - 1) x variance of g(s) - t",
        "standardised teacher; no groups of samples",
    ),
    "trg": Preset(
        (
            correlation("tokens", "identity", tau=0.1),
            correlation("all_tokens", "identity", tau=0.1, per_image=4),
            correlation("context", "identity", comparison="l2"),
        ),
        "token relation graph (2306.12442)",
        "abstract",
        "local and global relations between patches, and an inner-instance contextual loss",
        "KL of patch Gram rows per image + the same over 4 patches of each image + MSE of cosines to the image's mean patch",
        "all three forms are our reading",
    ),
    "clkd": Preset(
        (
            alignment("linear", "unit_mse", head="clkd"),
            alignment("linear", "unit_columns", head="clkd"),
            correlation("dims", "linear", comparison="l2", head="clkd"),
        ),
        "CLKD (2211.14773)",
        "third-party",
        "MSE of unit rows + MSE of unit columns of the logits + |covariance of classes, difference|_F / C^2",
        "the same with dimensions for classes: correlation of dimensions, mean squared difference",
        "Pearson correlations instead of covariances; weights 1",
    ),
    "residual": Preset(
        ({"term": "residual", "projector": "simreg", "weight": 1.0},),
        "Residual KD (2002.09168)",
        "abstract",
        "the student mimics the teacher's maps, an assistant learns the residual error",
        "MSE(g1(s), t) + MSE(g2(s), t - sg g1(s)) on standardised teachers",
        "two heads on one embedding; the student alone is deployed",
    ),
    "uncertainty": Preset(
        ({"term": "uncertainty", "projector": "simreg", "weight": 1.0},),
        "teaching with uncertainty, UET (2406.06999)",
        "abstract",
        "Monte-Carlo dropout of the teacher gives several samples; their uncertainty is mixed into feature distillation",
        "mean (g(s) - mu)^2 / (v + 0.1), mu and v over the image's views, on standardised teachers",
        "views instead of dropout, which these teachers do not have",
        views="multi",
    ),
    "hint_dynamic": Preset(
        (
            alignment("simreg", weight="learned"),
            correlation("queue", "simreg", size=8192, weight="learned"),
            correlation("batch", "square", comparison="pearson", weight="learned"),
        ),
        "hint-dynamic distillation, HKD (2211.17059)",
        "abstract",
        "a meta-network predicts weights of the hints per sample, from a labelled meta set",
        "sum over terms of exp(-l) L + log(1 + exp(l)), l trained",
        "one weight per term, learned by uncertainty: a stand-in, as no labelled set exists here",
    ),
}
