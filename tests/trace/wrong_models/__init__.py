"""Models with one mistake each, their repaired twins, and what the explanation must say.

Each case is a class with `wrong` and `right` modules, the inputs, and `says`: parts of the message, among them both
shapes (or sizes) and the fix. The failing line carries the comment `# here`.
"""

from tests.trace.wrong_models import products, shapes, values
from tests.trace.wrong_models.cases import CASES

__all__ = ["CASES", "products", "shapes", "values"]
