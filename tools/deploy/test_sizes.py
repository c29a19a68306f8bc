"""Tests of the sizes of the stacks in docs/deploying.md."""

import unittest

import sizes


class Sizes(unittest.TestCase):
    def test_the_documented_sizes_are_those_of_the_templates(self):
        rows = list(sizes.counts())
        self.assertIn(sizes.START + sizes.table(rows) + sizes.END, sizes.DOCS.read_text(), "run `make stack-sizes`")
        self.assertLess(max(total for _, total, _, _ in rows), sizes.LIMIT)


if __name__ == "__main__":
    unittest.main()
