"""A zoo folder to the Hugging Face Hub, as it stands."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import build_hf_headers, get_session

from ..errors import BvtamError
from ..models._zoo_model import ZooModel
from ..weights import zoo
from .publish import save_pretrained

log = logging.getLogger('bvtam')

_REFUSALS = (LocalTokenNotFoundError, OfflineModeIsEnabled, HFValidationError, HfHubHTTPError)


def push_folder(
    folder: str | os.PathLike[str],
    repo_id: str,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
) -> str:
    """Uploads a zoo folder; the repo and the branch are made if they are not there.

    Args:
        folder: with config.json, model.safetensors and README.md, or that of a training run.
        repo_id: `owner/repo`.
        private: for a repo that this call makes.
        revision: branch; the main one by default.
        create_pr: open a pull request instead of committing to the branch.

    Returns:
        The address of the commit or of the pull request.

    Raises:
        FileNotFoundError: a file is missing in the folder.
        BvtamError: the files are damaged, or the Hub refuses; each with what to do.
    """
    folder = zoo.model_folder(os.fspath(folder).removeprefix('local-dir:'))
    config, weights = zoo.read_config(folder), zoo.weights_file(folder)
    for path in (weights, folder / zoo.CARD):
        if not path.is_file():
            raise FileNotFoundError(f'{path} is missing')
    zoo.check_hashes(folder)
    names = [zoo.CONFIG, zoo.CARD, zoo.GOLDEN, zoo.SUMS]
    files = {name: folder / name for name in names if (folder / name).is_file()}
    api = HfApi()
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision and not create_pr:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        options: dict[str, Any] = {'revision': revision, 'create_pr': create_pr}
        options['commit_message'] = f'Add {config["architecture"]}'
        files[zoo.WEIGHTS] = weights
        if not _has_xet(api, repo_id, revision):
            commit = _commit_by_http(api, repo_id, files, options)
        else:
            try:
                added = [CommitOperationAdd(name, path) for name, path in files.items()]
                commit = api.create_commit(repo_id, added, **options)
            except _REFUSALS:
                raise
            except Exception as error:  # of the Xet client, whose errors have no common base
                log.warning('%s: upload by plain HTTP, since by Xet it failed (%s)', repo_id, error)
                commit = _commit_by_http(api, repo_id, files, options)
    except (LocalTokenNotFoundError, OfflineModeIsEnabled) as error:
        raise BvtamError(f'{repo_id}: {" ".join(str(error).split())}') from None
    except HFValidationError:
        raise BvtamError(
            f'{repo_id!r} is no name of a repo: it should look like owner/repo'
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 'no answer'
        fix = {401: 'log in with `hf auth login`', 403: 'your token may not write there'}.get(
            status, 'try again later'
        )
        raise BvtamError(f'{repo_id}: the Hub answers {status}; {fix}') from None
    except Exception as error:  # the client's own network errors have no common base
        raise BvtamError(
            f'{repo_id}: the Hub cannot be reached ({error}); try again, with '
            'HF_HUB_DISABLE_XET=1 if it lacks Xet'
        ) from error
    return commit.pr_url or commit.commit_url


def _commit_by_http(
    api: HfApi, repo_id: str, files: Mapping[str, Path], options: dict[str, Any]
) -> CommitInfo:
    """Open files go by plain HTTP, which every Hub takes."""
    with ExitStack() as stack:
        added = [
            CommitOperationAdd(name, stack.enter_context(path.open('rb')))
            for name, path in files.items()
        ]
        return api.create_commit(repo_id, added, **options)


def _has_xet(api: HfApi, repo_id: str, revision: str | None) -> bool:
    """Whether a Hub takes files by Xet; the client would ask one that does not for minutes."""
    branch = quote(revision or 'main', safe='')
    address = f'{api.endpoint}/api/models/{repo_id}/xet-write-token/{branch}'
    answer = get_session().get(address, headers=build_hf_headers(token=api.token))
    return answer.status_code not in (200, 404) or 'X-Xet-Cas-Url' in answer.headers


def push_to_hub(
    model: ZooModel,
    repo_id: str,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
) -> str:
    """`save_pretrained`, then `push_folder`, which see."""
    with TemporaryDirectory() as scratch:
        folder = save_pretrained(model, Path(scratch) / 'model')
        return push_folder(folder, repo_id, private, revision, create_pr)
