# %% [markdown]
# # From a teacher's file to a small student, in two minutes
#
# Everything here runs on images that ship with scikit-learn, on a laptop's CPU. Each step is one call. Nothing that trains
# ever sees a label: labels come in at the end, to measure.

# %%
import csv
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import torch
from sklearn.datasets import load_digits

import ssl_kd
from ssl_kd.eval import ArrayTask, evaluate_encoders

place = Path(mkdtemp())
scans = load_digits()
pixels = (scans.images * (255 / 16)).astype(np.uint8).repeat(4, 1).repeat(4, 2)  # 8 x 8 enlarged to 32 x 32
images = np.stack([pixels] * 3, -1)  # (1797, 32, 32, 3)
test = np.arange(len(images)) % 3 == 0
print(images[~test].shape, "to train on, without labels;", images[test].shape, "to test on")

# %% [markdown]
# ## A teacher
#
# Take a file that a lab published: `ssl_kd.load_encoder("dino_deitsmall16_pretrain.pth")`. Here we train a small one by SimCLR
# instead, so that nothing has to be downloaded. Its file has the layout of the method's own script.

# %%
ssl_kd.pretrain(
    images=images[~test],
    method="simclr",
    arch="resnet18",
    arch_args={"channels": [32, 64, 96, 128]},
    size=32,
    views="two_gentle",
    epochs=4,
    batch_size=128,
    lr=0.24,
    out=str(place / "teacher.pth.tar"),
    quiet=True,
)
print(ssl_kd.inspect(place / "teacher.pth.tar"))

# %% [markdown]
# ## A student
#
# `distill` takes a file, a name or a network as the teacher, any architecture as the student, and images without labels. The
# folder that it writes explains itself; the same call resumes a run that was interrupted.

# %%
done = ssl_kd.distill(
    str(place / "teacher.pth.tar"),
    "resnet18",
    images[~test],
    student_args={"channels": [12, 24, 48, 64]},
    views="gentle",
    size=32,
    crop_ratio=1.0,
    epochs=6,
    batch_size=32,
    lr=2e-3,
    health_images=64,  # held out, to look at the student with; of many images some are held out by themselves
    out=str(place / "run"),
    quiet=True,
)
print(sorted(path.name for path in done.path.parent.iterdir() if not path.name.startswith(".")))

# %% [markdown]
# ## Is it learning?
#
# Some images were held out. After each epoch the share of their ten nearest neighbours on which student and teacher agree is
# measured, without a label.

# %%
with open(place / "run/metrics.csv", newline="") as file:
    looks = [row for row in csv.DictReader(file) if row.get("health/neighbour_overlap")]
for row in looks:
    print(f"step {row['step']:>4}: {100 * float(row['health/neighbour_overlap']):.0f} % of the neighbours in common")
print(f"by chance: {100 * float(looks[0]['health/chance_neighbour_overlap']):.0f} %")

# %% [markdown]
# ## How much of the teacher survives?
#
# Now with labels: k-NN and a linear probe, by named protocols, beside the teacher and a network with random weights. Every figure
# has its interval, and the report opens with the answer in a sentence.

# %%
task = ArrayTask("digits", images[~test], scans.target[~test], images[test], scans.target[test])
random = ssl_kd.build("resnet18", preprocessing=done.student.preprocessing, channels=[12, 24, 48, 64])
encoders = {"teacher": ssl_kd.load_encoder(place / "teacher.pth.tar"), "student": done.student, "random": random}
results = evaluate_encoders(encoders, [task], ["knn/dino", "linear/quick-lbfgs"], out=place / "eval", quiet=True)
print(results.markdown())
print("report.html is there:", (place / "eval/report.html").is_file())

# %% [markdown]
# ## Use it
#
# A student is one more checkpoint: load it, embed pictures in [0, 1], search them, hand it on to timm.

# %%
student = ssl_kd.load_encoder(place / "run/student.safetensors")
batch = torch.from_numpy(images[:4]).permute(0, 3, 1, 2) / 255
with torch.no_grad():
    print(student(batch).embedding.shape)
(made,) = ssl_kd.export(place / "run/student.safetensors", "timm", place / "student_timm.safetensors")
print(str(made).replace(str(place), "."))

# %% [markdown]
# ## Next
#
# The same on the command line: `ssl-kd pretrain`, `distill`, `eval`, `export`. Which objective, how long, which size: the pages
# "Objectives" and "Questions" of the documentation.
