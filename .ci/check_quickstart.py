"""Look at what the quickstart left: balance and quality, from its files alone."""

import csv
import json
import sys
from collections import Counter
from pathlib import Path

out = Path(sys.argv[1])
with (out / "selection.csv").open() as file:
    reasons = Counter(row["reason"] for row in csv.DictReader(file))
counts = json.loads((out / "manifest.json").read_text())["counts"]
f1 = counts["metrics"]["selection"]["f1"]
print(f"{sum(reasons.values())} frames, {reasons['']} selected, F1 {f1:.3f} on the held-out run")
assert sum(reasons.values()) == counts["read"]["frames"] == 1500, reasons
assert reasons[""] == counts["select"]["selected"], reasons
assert f1 >= 0.85, f1  # 0.91 was measured
