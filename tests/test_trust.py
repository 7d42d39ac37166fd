from contextvars import copy_context

from compress.trust import is_trusted, set_trusted


def test_code_is_trusted_only_where_the_user_said_so() -> None:
    def trusting() -> bool:
        set_trusted(True)
        return is_trusted()

    assert copy_context().run(trusting) is True
    assert is_trusted() is False
