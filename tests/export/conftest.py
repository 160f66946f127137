import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # tests/tiny/: fixtures are not part of the package
