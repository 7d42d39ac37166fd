"""Names of datasets, as `--data` takes them."""

FOLDER_PREFIX = "imagefolder:"
DATASETS = ("fashion-mnist", "digits", f"{FOLDER_PREFIX}PATH")


def short_name(data: str) -> str:
    """Returns a dataset's name for folder names: `photos` of `imagefolder:/home/me/photos`."""
    return data.removeprefix(FOLDER_PREFIX).rstrip("/").rpartition("/")[2]
