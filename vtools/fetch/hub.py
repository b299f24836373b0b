"""`hf:OWNER/NAME[/PATH][@REVISION]`: the files of a data set on the hub, through the cache of huggingface_hub."""

import fnmatch
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from vtools.inference import retry
from vtools.process import Failure, TryAgain, install
from vtools.records import streams
from vtools.records.naming import NONE, Names

PREFIX = "hf:"


class File(NamedTuple):
    """A file of a data set: its reference at its commit, its copy in the cache, and the license that the card names."""

    uri: str
    path: str
    license: str | None


def files(
    reference: str, names: Names = NONE, kinds: Sequence[streams.Kind] = (), known: str | None = None
) -> Iterator[File]:
    """The data files of a reference, each downloaded when it is reached. PATH is a file, a folder or a glob.

    There are none if the data set is still at the commit that is `known`.

    A download that broke off is resumed. Raises Failure, and TryAgain if the hub is busy.
    """
    where, at, revision = reference.removeprefix(PREFIX).rpartition("@")
    where, revision = (where, revision) if at else (revision, "")
    owner, _, rest = where.partition("/")
    name, _, wanted = rest.partition("/")
    if not (owner and name):
        raise Failure(f"{reference}: write hf:OWNER/NAME, hf:OWNER/NAME/PATH or hf:OWNER/NAME/PATH@REVISION")
    try:
        import huggingface_hub
    except ModuleNotFoundError:
        raise Failure(f"{reference}: data sets of the hub need huggingface_hub: {install('hub')}") from None
    repository = f"{owner}/{name}"
    try:
        about = huggingface_hub.HfApi().dataset_info(repository, revision=revision or None)
    except Exception as error:  # the hub library has a dozen error classes
        raise _failure(reference, repository, error) from None
    if known and about.sha == known:
        return
    there = sorted(file.rfilename for file in about.siblings or ())
    found = _chosen(there, wanted.strip("/"), names, kinds)
    if not found:
        shown = ", ".join(there[:6]) + ", ..." * (len(there) > 6)
        raise Failure(f"{reference}: no file of that name with records in it ({shown or 'the data set is empty'})")
    license = getattr(about.card_data, "license", None)
    for file in found:
        try:
            path = huggingface_hub.hf_hub_download(repository, file, repo_type="dataset", revision=about.sha)
        except Exception as error:
            raise _failure(reference, repository, error) from None
        uri = f"{PREFIX}{repository}/{file}@{about.sha}"
        yield File(uri, path, license if isinstance(license, str) else None)


def _chosen(there: list[str], wanted: str, names: Names, kinds: Sequence[streams.Kind]) -> list[str]:
    if wanted in there:
        return [wanted]
    below = [file for file in there if not wanted or file.startswith(f"{wanted}/") or fnmatch.fnmatch(file, wanted)]
    return streams.data(below, names, kinds)


def _failure(reference: str, repository: str, error: Any) -> Failure:
    from huggingface_hub import errors

    page = f"https://huggingface.co/datasets/{repository}"
    status = getattr(getattr(error, "response", None), "status_code", 0)
    if retry.is_transient(status):
        return TryAgain(
            f"{reference}: the hub answers HTTP {status}; try again later, or with HF_TOKEN for higher limits"
        )
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, errors.GatedRepoError):
        reason = f"the data set is gated: accept its terms at {page}, then `hf auth login` or set HF_TOKEN"
    elif isinstance(error, errors.RevisionNotFoundError):
        reason = f"no such revision; see {page}/commits/main"
    elif isinstance(error, errors.RepositoryNotFoundError):
        reason = f"no such data set, or a private one (then `hf auth login` or set HF_TOKEN): {page}"
    elif isinstance(error, errors.OfflineModeIsEnabled):
        reason = "HF_HUB_OFFLINE is set"
    return Failure(f"{reference}: {reason}")
