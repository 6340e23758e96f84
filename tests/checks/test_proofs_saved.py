"""Certificates of a check of proofs: one file for each check, which proves again what it says."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from pytest_triguard import TriGuardFailure, assert_verified
from pytest_triguard.checks import verified
from pytest_triguard.checks.artifacts import save_certificates
from pytest_triguard.errors import InputError, InputTypeError, TriGuardWarning
from pytest_triguard.verification import Budget, read_certificates, recheck_file, write_certificates
from tests.assertions import gate_problem
from tests.sessions import with_settings

BUDGET = Budget(domains=12, steps=3)
ENDING = ".certificates.json"


def checked(folder, count=20, eps=0.03, at_least=0.1, **arguments):
    subject, inputs, labels = gate_problem(count)
    with with_settings(artifacts=folder) as session:
        try:
            assert_verified(
                subject, inputs, labels, eps=eps, at_least=at_least, budget=BUDGET, **arguments
            )
        except TriGuardFailure as failure:
            return subject, inputs, failure.record, str(failure)
        (record,) = session.records.values()
    return subject, inputs, record, ""


def test_a_check_that_passes_saves_its_proofs_in_one_file_that_proves_them_again(tmp_path):
    subject, inputs, record, _ = checked(tmp_path / "new")
    (path,) = record.artifacts
    assert path.endswith(ENDING)
    assert [str(each) for each in (tmp_path / "new").iterdir()] == [path]
    found = recheck_file(path, subject, inputs)
    assert len(found) == record.counts["proven"] > 2
    assert all(each.holds for each in found.values())
    for certificate in read_certificates(path):
        assert certificate.method == "auto"
        assert certificate.region == {"norm": "linf", "eps": 0.03}


def test_proofs_of_own_ids_and_radii_are_found_by_their_hash(tmp_path):
    ids = [f"img/{place}.png" for place in range(8)]
    eps = torch.linspace(0.001, 0.03, 8)
    subject, inputs, record, _ = checked(tmp_path, 8, eps=eps, ids=ids)
    found = recheck_file(record.artifacts[0], subject, inputs.flip(0))
    assert set(found) < set(ids)
    assert all(each.holds for each in found.values())
    other = recheck_file(record.artifacts[0], subject, inputs[:1] + 1e-9)
    assert {each.reason.partition(":")[0] for each in other.values()} == {
        "the sample is not among the inputs"
    }


def test_a_certificate_that_does_not_hold_is_not_hidden_by_another_of_its_sample(tmp_path):
    subject, inputs, record, _ = checked(tmp_path)
    good = read_certificates(record.artifacts[0])[0]
    bad, path = replace(good, region={"norm": "linf", "eps": 0.5}), tmp_path / "both.json"
    for pair in ((good, bad), (bad, good)):
        write_certificates(path, pair)
        ((sample, found),) = recheck_file(path, subject, inputs).items()
        assert (sample, found.holds) == (good.sample, False)


def test_a_check_that_fails_saves_both(tmp_path):
    subject, inputs, record, message = checked(tmp_path, eps=0.1, at_least=1.0)
    examples, proofs = record.artifacts
    assert examples.endswith(".npz")
    assert f"{examples} (read back and confirmed)" in message
    assert f"{proofs} (certificates)" in message
    assert len(recheck_file(proofs, subject, inputs)) == record.counts["proven"]


def test_proofs_by_search_keep_their_trees(tmp_path):
    subject, inputs, record, _ = checked(tmp_path, eps=0.1, at_least=0.0, method="branch_and_bound")
    certificates = read_certificates(record.artifacts[0])
    assert all(each.trees is not None for each in certificates)
    assert all(each.holds for each in recheck_file(record.artifacts[0], subject, inputs).values())


def test_what_there_is_no_room_for_is_left_out_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(verified, "LARGEST", 2500)
    *_, record, _ = checked(tmp_path)
    kept = len(read_certificates(record.artifacts[0]))
    assert 0 < kept < record.counts["proven"]
    assert record.diagnostics == {"certificates left out": record.counts["proven"] - kept}


def test_nothing_is_saved_where_nothing_is_proven_or_no_folder_is_set(tmp_path):
    *_, record, _ = checked(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    *_, record, _ = checked(tmp_path, eps=0.9, at_least=0.0, inconclusive="pass")
    assert record.artifacts == []
    assert list(tmp_path.iterdir()) == []
    *_, record, _ = checked(None)
    assert record.artifacts == []


def test_certificates_cost_no_pass(tmp_path):
    *_, with_files, _ = checked(tmp_path)
    *_, without, _ = checked(None)
    assert with_files.passes == without.passes
    assert with_files.counts == without.counts


def test_a_folder_that_cannot_be_made_is_a_warning(tmp_path):
    *_, record, _ = checked(tmp_path)
    certificates = read_certificates(record.artifacts[0])
    (tmp_path / "file").write_text("")
    with pytest.warns(TriGuardWarning, match="certificates could not be saved to .*check-"):
        assert save_certificates(tmp_path / "file" / "folder", "a::b", "c", certificates) is None


def test_what_is_no_file_of_certificates_is_refused(tmp_path):
    subject, inputs, _ = gate_problem(2)
    path = tmp_path / "other.json"
    path.write_text(json.dumps({"format": "something else"}))
    with pytest.raises(InputError, match="must hold pytest-triguard certificates"):
        recheck_file(path, subject, inputs)
    *_, record, _ = checked(tmp_path)
    with pytest.raises(InputTypeError, match="inputs must be a Tensor"):
        recheck_file(record.artifacts[0], subject, None)


def test_a_run_of_pytest_leaves_them_and_names_them_in_its_report(pytester):
    pytester.makefile(".ini", pytest="[pytest]\n")
    pytester.makepyfile(
        test_gate="""
        import torch
        from torch import nn
        from pytest_triguard import Classifier, assert_verified

        def problem():
            torch.manual_seed(0)
            module = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
            subject, inputs = Classifier(module), torch.rand(6, 1, 2, 2)
            return subject, inputs, subject(inputs).argmax(1)

        def test_passes():
            assert_verified(*problem(), eps=0.001, at_least=0.1, name="small")
            assert_verified(*problem(), eps=0.002, at_least=0.1, name="larger")
        """
    )
    result = pytester.runpytest_inprocess(
        "--triguard-json=report.json", "-p", "no:randomly", "-p", "no:cacheprovider"
    )
    result.assert_outcomes(passed=1)
    report = json.loads((pytester.path / "report.json").read_text())
    named = [path for check in report["checks"] for path in check["artifacts"]]
    folder = pytester.path / ".triguard" / "artifacts"
    assert sorted(map(str, folder.iterdir())) == sorted(named)
    assert len(named) == 2
    found = [len(read_certificates(path)) for path in named]
    assert found == [check["counts"]["proven"] for check in report["checks"]]
