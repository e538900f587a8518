"""Show what a layer's experts react to, and where in the documents: labels and activity per page.

    python examples/04_experts.py [PICTURE.png]

Nothing of this changes an answer: experts are a way to look into a model. The picture needs
matplotlib.
"""

import importlib
import importlib.util
import sys
from pathlib import Path

from pacellm_rag import load_documents, load_model
from pacellm_rag.pace.clustering import cluster_neurons
from pacellm_rag.pace.experts import expert_activity, label_experts

LAYER = 13
SHOWN = 16

model = load_model()
tokenizer = model.tokenizer.hf
names: list[str] = []
spans: list[tuple[int, int]] = []
token_ids: list[int] = [tokenizer.bos_token_id]
for document in load_documents(sorted((Path(__file__).parent / "documents").glob("*.pdf"))):
    for page in document.pages:
        start = len(token_ids)
        token_ids += tokenizer.encode(page.text, add_special_tokens=False)
        names.append(f"{document.title}, p. {page.label}")
        spans.append((start, len(token_ids)))
print(f"{len(names)} pages, {len(token_ids)} tokens\n")

experts = cluster_neurons(model.module, layers=[LAYER])
labels = label_experts(model.module, tokenizer, token_ids, experts, top=6, fewest=3)[LAYER]
activity = expert_activity(model.module, token_ids, experts, spans=spans)
assert activity.spans is not None
relative = activity.spans[0] / activity.mean[0] - 1  # (pages, experts); 0 is as usual

lively = relative.std(0).argsort(descending=True)[:SHOWN].tolist()
print(f"Layer {LAYER}: the {SHOWN} experts that differ most from page to page")
for expert in lively:
    page_number = int(relative[:, expert].argmax())
    words = " ".join(repr(token) for token in labels[expert].tokens)
    print(f"  {expert:>2}  {words}")
    print(f"      {relative[page_number, expert]:+.0%} on {names[page_number]}")

print("\nThe expert that stands out on each page")
for name, page_activity in zip(names, relative, strict=True):
    expert = int(page_activity.argmax())
    print(f"  {name}: {expert} ({page_activity[expert]:+.0%}), {labels[expert].tokens[0]!r}")

if len(sys.argv) > 1:
    if importlib.util.find_spec("matplotlib") is None:
        sys.exit("No picture: matplotlib is not installed (pip install matplotlib).")
    figure = importlib.import_module("matplotlib.figure").Figure(
        figsize=(10, 6), layout="constrained"
    )
    axes = figure.add_subplot()
    image = axes.imshow(relative[:, lively], cmap="RdBu_r", vmin=-0.5, vmax=0.5, aspect="auto")
    axes.set_yticks(range(len(names)), names, fontsize=7)
    titles = [f"{expert} {''.join(labels[expert].tokens[:2])}" for expert in lively]
    axes.set_xticks(range(SHOWN), titles, rotation=60, ha="right", fontsize=7)
    axes.set_title(f"Activity of experts of layer {LAYER}, relative to their mean")
    figure.colorbar(image)
    figure.savefig(sys.argv[1], dpi=150)
    print(f"\nThe picture is in {sys.argv[1]}")
