#!/usr/bin/env python3
"""Reports from outside: zero-shot tasks of `pith eval`, the page of `pith inspect`, quality in the file."""
import html.parser
import json
import os
import shutil
import unittest

import tiny_model
from harness import CliTest, pith

ARC = [{"centerpiece": "What is wet?", "options": ["Sand", "Water", "Fire"], "correct_options_idx": [1]},
       {"centerpiece": "What is hot?", "options": ["Ice", "Fire"], "correct_options_idx": [1]}]


class Page(html.parser.HTMLParser):
    """Every tag closes what it opened; what the page says and what it asks a browser to load."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts, self.attributes, self.errors = [], [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *a) for a in attrs]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *a) for a in attrs]

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.errors.append(tag)

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.texts.append(data)


class Tasks(CliTest):
    def data(self, records, name="data.json"):
        path = self.folder / name
        path.write_text("".join(json.dumps(r) + "\n" for r in records))
        return path

    def test_a_task_prints_its_figures(self):
        text = self.ok(pith("eval", self.models.full, "--task", "arc-easy", "--data", self.data(ARC))).text
        for word in ("arc-easy", "acc", "acc_norm", "chance          41.67 %"):
            self.assertIn(word, text)

    def test_json_agrees_with_the_scores_of_its_items(self):
        out = json.loads(self.ok(pith("eval", self.models.full, "--task", "arc-challenge", "--data", self.data(ARC),
                                      "--json", "--items")).text)
        self.assertEqual((out["items"], len(out["scores"]), out["truncated"]), (2, 2, 0))
        right = right_norm = 0
        for item, record in zip(out["scores"], ARC):
            scores = item["log_likelihoods"]
            self.assertEqual(len(scores), len(record["options"]))
            self.assertTrue(all(s < 0 for s in scores))
            norm = [s / len(o) for s, o in zip(scores, record["options"])]
            self.assertEqual(item["choice"], scores.index(max(scores)))
            self.assertEqual(item["choice_norm"], norm.index(max(norm)))
            right += item["choice"] == item["answer"]
            right_norm += item["choice_norm"] == item["answer"]
        self.assertEqual((out["acc"], out["acc_norm"]), (right / 2, right_norm / 2))
        self.assertNotIn("scores", json.loads(self.ok(pith(
            "eval", self.models.full, "--task", "arc-challenge", "--data", self.data(ARC), "--json")).text))

    def test_a_reference_is_scored_beside_it(self):
        out = json.loads(self.ok(pith("eval", self.models.full, "--against", self.models.full, "--task", "arc-easy",
                                      "--data", self.data(ARC), "--json")).text)
        self.assertEqual((out["same_choice"], out["ref_acc"]), (1, out["acc"]))
        result = self.ok(pith("eval", self.models.small, "--against", self.models.full, "--task", "arc-easy", "--data",
                              self.data(ARC)))
        self.assertIn("same choice", result.text)
        stages = [f"{stage}: {share} %" for stage in ("arc-easy", "reference arc-easy") for share in (50, 100)]
        self.assertEqual(result.message.splitlines(), stages)

    def test_blimp_reads_a_folder_and_names_each_phenomenon(self):
        for name in ("one", "two"):
            self.data([{"sentence_good": "A dog barks.", "sentence_bad": "A dog bark.", "UID": name}] * 2,
                      name + ".jsonl")
        out = json.loads(self.ok(pith("eval", self.models.full, "--task", "blimp", "--data", self.folder, "--limit",
                                      "1", "--json")).text)
        self.assertEqual({name: group["items"] for name, group in out["groups"].items()}, {"one": 1, "two": 1})

    def test_an_error_that_is_not_defined_is_left_out(self):
        model = ["eval", self.models.small, "--against", self.models.full]
        text = self.ok(pith(*model, "--task", "arc-easy", "--data", self.data(ARC[:1]))).text
        self.assertRegex(text, r"\nacc +\d+\.00 %\nacc_norm +\d+\.00 %\n")
        self.assertRegex(text, r"\nreference acc +\d+\.00 %\n")
        text = self.ok(pith(*model, "--task", "lambada", "--data", self.data([{"text": "It is wet"}]))).text
        self.assertRegex(text, r"\nppl +[0-9.]+\n")
        (self.folder / "blimp").mkdir()
        for name in ("one", "two"):
            self.data([{"sentence_good": "A dog barks.", "sentence_bad": "A dog bark.", "UID": name}],
                      f"blimp/{name}.jsonl")
        blimp = ["--task", "blimp", "--data", self.folder / "blimp"]
        self.assertRegex(self.ok(pith(*model, *blimp)).text, r"\none +1 +\d+\.00 {11,}\d+\.00\n")
        self.assertRegex(self.ok(pith(*model[:2], *blimp)).text, r"\none +1 +\d+\.00\n")
        window = self.folder / "window.txt"
        window.write_text("The quick brown fox jumps.")
        text = self.ok(pith(*model, "--text", window, "--ctx", "16")).text
        self.assertRegex(text, r"\nppl ratio +[0-9.]+\nKL mean +[0-9.]+\n")

    def test_a_task_is_refused_with_what_is_wrong(self):
        model, data = self.models.full, self.data(ARC)
        self.fails(pith("eval", model), 2, "--text", "--task")
        self.fails(pith("eval", model, "--text", data, "--task", "arc-easy", "--data", data), 2, "--text")
        self.fails(pith("eval", model, "--task", "arc-easy"), 2, "--data")
        self.fails(pith("eval", model, "--task", "arc", "--data", data), 2, "arc-easy, arc-challenge")
        self.fails(pith("eval", model, "--task", "arc-easy", "--data", self.folder / "none"), 1, "none")
        self.fails(pith("eval", model, "--task", "arc-easy", "--data", self.folder), 1, self.folder)
        data.write_text(data.read_text() + '{"centerpiece": 1}\n')
        self.fails(pith("eval", model, "--task", "arc-easy", "--data", data), 1, f"{data}:3:")


class Inspect(CliTest):
    def page(self, model):
        path = self.folder / "report.html"
        self.assertEqual(self.ok(pith("inspect", model, "--html", path)).out, b"")
        text = path.read_text()
        page = Page(text)
        self.assertEqual((page.errors, page.open), ([], []))
        return text, page

    def test_the_page_needs_nothing_and_runs_nothing(self):
        text, page = self.page(self.models.small)
        self.assertIn("default-src 'none'", text)
        self.assertNotIn("script", page.tags)
        for tag, name, value in page.attributes:
            self.assertFalse(name.startswith("on") or name in ("src", "href"), (tag, name, value))
            self.assertNotIn("url(", value or "")
        self.assertNotRegex(text, r"https?://|@import|url\(")
        self.assertIn("prefers-color-scheme:dark", text)

    def test_the_page_shows_every_tensor_and_the_figures_of_the_file(self):
        facts = json.loads(self.ok(pith("inspect", self.models.small, "--json")).text)
        text, page = self.page(self.models.small)
        words = " ".join(page.texts)
        for tensor in facts["tensors"]:
            self.assertIn(tensor["name"], page.texts)
        for key in facts["metadata"]:
            self.assertIn(key, page.texts)
        self.assertIn(f"{facts['linear_bpw']:.3f}", words)
        self.assertIn(f"{facts['metadata']['quality.ppl_ratio']:.3f}\u00d7", words)
        self.assertIn(f"{facts['metadata']['quality.kl']:.4f}", words)
        for title in ("Bits per weight", "Relative squared error", "4-bit columns", "Outliers"):
            self.assertIn(title, page.texts)
        # A point for each matrix of each layer in the two line charts.
        n_matrices = sum(t["name"].startswith("layers.") and t["shape"][0] > 1 for t in facts["tensors"])
        self.assertEqual(page.tags.count("circle"), 2 * n_matrices)

    def test_the_page_shows_an_ablation(self):
        table, path = self.folder / "ablation.json", self.folder / "report.html"
        row = {"bits": 2.85, "ppl_ratio": 1.05, "ppl_ratio_se": .002, "kl_mean": .04, "kl_mean_se": .001}
        rows = [{"quantizer": "uniform <b>"} | row, {"quantizer": "all levers"} | row | {"kl_mean": .02}]
        table.write_text(json.dumps({"model": "demo", "text": "held-out", "rows": rows}))
        self.ok(pith("inspect", self.models.full, "--html", path, "--ablation", table))
        page = Page(path.read_text())
        self.assertEqual((page.errors, page.open), ([], []))
        self.assertIn("uniform <b>", page.texts)
        self.assertIn("quantizer 1, KL divergence: 0.0200 nats", page.texts)
        for wrong in ([], {"model": "m", "text": "t", "rows": []}, {"model": "m", "text": "t", "rows": [row]}):
            table.write_text(json.dumps(wrong))
            self.fails(pith("inspect", self.models.full, "--html", path, "--ablation", table), 1, table, "expected what")
        self.fails(pith("inspect", self.models.full, "--ablation", table), 2, "--html")

    def test_a_file_without_quantized_tensors_has_a_page(self):
        _, page = self.page(self.models.full)
        self.assertIn("Bits per weight", page.texts)
        self.assertNotIn("Relative squared error", page.texts)
        self.assertNotIn("Outliers", page.texts)

    def test_what_a_file_says_stays_text(self):
        evil = "<script>alert(1)</script>&\"'><img src=x onerror=alert(2)>"
        folder = self.folder / "m"
        shutil.copytree(self.models.checkpoint, folder)
        config = json.loads((folder / "tokenizer_config.json").read_text())
        config["chat_template"] = evil
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        model = self.folder / "a<b onload=x>&'\".pith"
        self.ok(pith("convert", folder, "-o", model, "--bits", "16"))
        text, page = self.page(model)
        self.assertTrue({"script", "img", "b onload"}.isdisjoint(page.tags))
        self.assertNotIn("<script", text)
        self.assertIn(model.name, page.texts)  # as it is called
        self.assertTrue(any("<script>alert(1)</script>&" in t for t in page.texts))

    def test_the_page_is_whole_or_not_there(self):
        report = self.folder / "report.html"
        report.write_text("<!doctype html>old")
        broken = self.folder / "broken.pith"
        broken.write_bytes(self.models.small.read_bytes()[:-1])
        self.fails(pith("inspect", broken, "--html", report), 1, "broken.pith")
        self.assertEqual(report.read_text(), "<!doctype html>old")
        self.fails(pith("inspect", self.models.small, "--html", self.folder / "none" / "x.html"), 1, "none")
        self.ok(pith("inspect", self.models.small, "--html", report))
        self.assertEqual(sorted(p.name for p in self.folder.iterdir()), ["broken.pith", "report.html"])

    def test_the_page_replaces_only_a_page_or_an_empty_file(self):
        report = self.folder / "report.html"
        report.touch()
        for _ in range(2):  # over the empty file, over the page
            self.ok(pith("inspect", self.models.small, "--html", report))
        model, text, link, fifo = (self.folder / name for name in ("b.pith", "text", "link", "fifo"))
        shutil.copy(self.models.small, model)
        text.write_text("<!doct")
        link.symlink_to(report)
        os.mkfifo(fifo)
        for path in (model, text):
            before = path.read_bytes()
            self.fails(pith("inspect", self.models.small, "--html", path), 2, path, "expected a new name or a page")
            self.assertEqual(path.read_bytes(), before)
        for path in (link, fifo, self.folder):
            self.fails(pith("inspect", self.models.small, "--html", path), 1, path, "not a regular file")
        self.assertTrue(link.is_symlink() and fifo.is_fifo())

    def test_the_list_of_tensors_is_left_out(self):
        whole = json.loads(self.ok(pith("inspect", self.models.small, "--json")).text)
        del whole["tensors"]
        self.assertEqual(json.loads(self.ok(pith("inspect", self.models.small, "--json", "--no-tensors")).text), whole)
        self.assertNotIn("embed ", self.ok(pith("inspect", self.models.small, "--no-tensors")).text)

    def test_a_page_without_a_name_is_refused(self):
        self.fails(pith("inspect", self.models.small, "--html", "", cwd=self.folder), 2, "the page has no name")
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_quality_is_in_the_file_and_shown(self):
        out = json.loads(self.ok(pith("inspect", self.models.small, "--json")).text)
        for key in ("quality.ppl_ratio", "quality.kl", "quality.linear_bits", "quality.held_out_tokens"):
            self.assertIn(key, out["metadata"])
        quantized = [t for t in out["tensors"] if t["kind"] == "q24"]
        self.assertTrue(quantized)
        text = self.ok(pith("inspect", self.models.small)).text
        for tensor in quantized:
            self.assertGreater(tensor["relative_error"], 0)
            line = next(line for line in text.splitlines() if line.startswith(tensor["name"] + " "))
            self.assertIn(f"{tensor['relative_error']:.5f}", line)
        self.assertRegex(text, r"quality +perplexity [0-9.]+ times the original's, KL divergence [0-9.]+")
        self.assertTrue(all("relative_error" not in t for t in out["tensors"] if t["kind"] != "q24"))

    def test_bits_of_the_linear_layers_leave_routers_out_wherever_they_are_counted(self):
        checkpoint, path = self.folder / "mixture", self.folder / "mixture.pith"
        tiny_model.write(checkpoint, "mixture")
        summary = self.ok(pith("convert", checkpoint, "-o", path, "--bits", "3.3", *self.models.calibration)).text
        out = json.loads(self.ok(pith("inspect", path, "--json")).text)
        linear = [t for t in out["tensors"] if t["name"].startswith("layers.") and t["kind"] == "q24"]
        self.assertEqual({t["kind"] for t in out["tensors"] if t["name"].endswith(".router")}, {"bf16"})
        bits = 8 * sum(t["bytes"] for t in linear) / sum(t["shape"][0] * t["shape"][1] for t in linear)
        self.assertAlmostEqual(out["metadata"]["quality.linear_bits"], bits, places=9)
        self.assertAlmostEqual(out["linear_bpw"], bits, places=9)
        self.assertIn(f"{bits:.3f} bits per weight of the linear", summary)
        self.assertIn(f"bits per weight {bits:.3f} linear layers", self.ok(pith("inspect", path)).text)
        self.ok(pith("inspect", path, "--html", self.folder / "page.html"))
        self.assertIn(f">{bits:.3f}<", (self.folder / "page.html").read_text())


if __name__ == "__main__":
    unittest.main()
