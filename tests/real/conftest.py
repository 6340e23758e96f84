"""What the tests of real images share."""

import pytest

from tests.real.found import NotHereError


@pytest.fixture
def here():
    """Call something that needs packages; the test is skipped where one of them is missing."""

    def call(made, *given):
        try:
            return made(*given)
        except NotHereError as error:
            pytest.skip(str(error))

    return call
