"""``python -m torchopt`` prints a report to paste into an issue."""

from torchopt._report import report

if __name__ == "__main__":
    print(report())
