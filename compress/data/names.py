"""Names of datasets, as `--data` takes them."""

FOLDER_PREFIX = "imagefolder:"
DATASETS = ("fashion-mnist", "digits", f"{FOLDER_PREFIX}PATH", "package.module:function")


def short_name(data: str) -> str:
    """Returns a dataset's name for folder names: `photos` of `imagefolder:/home/me/photos`."""
    if data.startswith(FOLDER_PREFIX):
        return data.removeprefix(FOLDER_PREFIX).rstrip("/").rpartition("/")[2]
    return data.rpartition(":")[2]
