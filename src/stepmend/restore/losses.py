"""The objectives over bullets. The teacher's outputs, or those of the low-bit model before tuning, are computed once, before training.
Tensor names: N targets of a text, H hidden width.

With p the full-precision model, q the tuned one, r the low-bit one before tuning, h last hidden states, and over the targets n of a batch
(the tokens of ``span``), in natural logs:

- ``sft``: mean_n -log q(token_n). Plain likelihood, as in supervised fine-tuning (Ouyang et al., 2203.02155).
- ``dpo``: mean over pairs of -log sigmoid(beta * (log q(c) / r(c) - log q(w) / r(w))) for the chosen text c and the rejected text w after
  their shared prefix (Rafailov et al., 2305.18290, equation 7), plus ``keep_chosen`` * mean_n -log q(c_n) (Pang et al., 2404.19733),
  without which preferences are won at the chosen text's cost.
- ``distill``: D(targets) + ``question`` * D(question), where D is the mean over places of w_n * KL(p_n || q_n) + ``features`` *
  |h_q - h_p|^2 / mean |h_p|^2. KL of full precision's distribution: QAD (2601.20088). Hidden states: FitNets (1412.6550), at the last
  layer alone. w is ``weight`` (see ``objectives.weights``), scaled to mean 1 over the targets and over the question apart. The term on the
  question's own tokens is ours: it preserves behaviour that no answer exercises.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from stepmend.keys import Restore
from stepmend.models.forward import head_of, in_chunks, states_of
from stepmend.models.head import Head
from stepmend.records import Bullet
from stepmend.restore import objectives, scales

READ = 16
"""Texts read at once before training."""


def disable_dropout(module: Any) -> None:
    """Disable the dropout in a layer's own forward pass."""
    for name, value in vars(module).items():
        if "dropout" in name and isinstance(value, float):
            setattr(module, name, 0.0)


class Loss:
    """The loss of one recipe over its bullets, and for ``distill`` anchors after them; ``read`` once, then call it with a batch's indices.

    ``targets`` is how many tokens each text is supervised on. Of full precision only the head is kept, and its last hidden states at the
    targets: full-precision logits are recomputed from them for each batch, so the teacher need not stay in memory and no logits are stored.
    ``checkpointing`` says whether gradient checkpointing is on.
    """

    def __init__(
        self, recipe: Restore, student: Any, tokenizer: Any, bullets: Sequence[Bullet], anchors: Sequence[objectives.Row] = ()
    ) -> None:
        span = recipe.trained
        self.recipe, self.student, self.pad = recipe, student, tokenizer.pad_token_id
        self.rows = [objectives.chosen_row(tokenizer, bullet, span, recipe.prefix) for bullet in bullets]
        self.rows += anchors if recipe.objective == "distill" else []
        self.targets = [sum(row.targets) for row in self.rows]
        self.targets_NH: list[torch.Tensor] = []
        self.questions_NH: list[torch.Tensor] = []
        self.head: Any = None
        self.checkpointing, self.packed = False, True
        if recipe.objective == "dpo":
            rejected = [objectives.rejected_row(tokenizer, bullet, span, recipe.prefix) for bullet in bullets]
            self.pairs = [objectives.pack(row, other) for row, other in zip(self.rows, rejected, strict=True)]

    @property
    def questions(self) -> list[int]:
        """How many tokens of each bullet's question count."""
        counted = self.recipe.objective == "distill" and self.recipe.question
        return [row.question - 1 if counted else 0 for row in self.rows]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each bullet, as they go through the model."""
        return [len(pair.ids) for pair in self.pairs] if self.recipe.objective == "dpo" else [len(row.ids) for row in self.rows]

    def checkpoint_gradients(self) -> None:
        """Enable gradient checkpointing: store only each layer's input, and recompute the layer in the backward pass (1604.06174)."""
        self.checkpointing = True
        self.student.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        for module in self.student.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.training = True  # what the layer asks for; all that is in it does not change, without dropout
                disable_dropout(module)

    def read(self, teacher: Any) -> None:
        """Read what the full-precision model ``teacher``, or the low-bit one before tuning, says of the texts."""
        if self.recipe.objective == "distill":
            self._read_teacher(teacher)
        if self.recipe.objective == "dpo":
            self.packed = objectives.packs(self.student, self.pairs, self.pad)
            self.reference_B2 = self.preferences()

    def __call__(self, batch: Sequence[int]) -> torch.Tensor:
        with nullcontext() if self.checkpointing else scales.made_once(self.student):
            return self._of(batch)

    def _of(self, batch: Sequence[int]) -> torch.Tensor:
        if self.recipe.objective == "dpo":
            return self._preference(batch)
        rows = [self.rows[i] for i in batch]
        if self.recipe.objective == "distill":
            return self._distill(rows, batch)
        return objectives.sft(self.student, rows, self.pad)

    def _states(self, model: Any, rows: Sequence[objectives.Row], where: Sequence[tuple[int, int]]) -> torch.Tensor:
        return states_of(model, [row.ids for row in rows], where, self.pad)

    def _distill(self, rows: Sequence[objectives.Row], batch: Sequence[int]) -> torch.Tensor:
        """The mean over the targets, and a weight times the mean over the questions' own tokens, which keeps what no answer shows."""

        def of(student_NH: torch.Tensor, teacher_NH: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                teacher_NV = self.head(teacher_NH)
            divergence_N = objectives.distill(head_of(self.student, student_NH), teacher_NV)
            return torch.stack([divergence_N, objectives.weights(teacher_NV, self.recipe.weight)], dim=1)

        student_NH = self._states(self.student, rows, self._where(rows))
        teacher_NH = torch.cat([self.targets_NH[i] for i in batch] + [self.questions_NH[i] for i in batch]).to(student_NH.device)
        loss_N, weight_N = in_chunks(of, self.student.config.get_text_config().vocab_size, student_NH, teacher_NH).unbind(1)
        targets = sum(self.targets[i] for i in batch)
        # Each mean has weights of its own: else a question's sureness would change what it counts beside the answer.
        parts = weight_N.split([targets, len(weight_N) - targets])
        loss_N = loss_N * torch.cat([part / part.mean() for part in parts])
        if self.recipe.features:
            loss_N = loss_N + self.recipe.features * objectives.features(student_NH, teacher_NH)
        loss = loss_N[:targets].mean()
        return loss + self.recipe.question * loss_N[targets:].mean() if self.recipe.question else loss

    def _where(self, rows: Sequence[objectives.Row]) -> list[tuple[int, int]]:
        """Positions of all targets, then of all question tokens if those count too."""
        return objectives.places(rows) + (objectives.question_places(rows) if self.recipe.question else [])

    def _read_teacher(self, teacher: Any) -> None:
        self.head = Head(teacher)
        with torch.no_grad():
            for start in range(0, len(self.rows), READ):
                rows = self.rows[start : start + READ]
                states_NH = self._states(teacher, rows, self._where(rows)).cpu()
                parts = states_NH.split([*self.targets[start : start + READ], *self.questions[start : start + READ]])
                self.targets_NH += parts[: len(rows)]
                self.questions_NH += parts[len(rows) :]

    def preferences(self) -> torch.Tensor:
        """Log-probabilities of chosen and rejected as the student has them now, without gradient: [bullets, 2]."""
        found = []
        with torch.no_grad():
            for start in range(0, len(self.pairs), READ):
                found.append(
                    torch.stack(objectives.pairs_of(self.student, self.pairs[start : start + READ], self.pad, packed=self.packed), dim=1)
                )
        return torch.cat(found)

    def _preference(self, batch: Sequence[int]) -> torch.Tensor:
        chosen_B, rejected_B = objectives.pairs_of(self.student, [self.pairs[i] for i in batch], self.pad, packed=self.packed)
        before_B2 = self.reference_B2[list(batch)]
        # DPO alone lowers the chosen text's likelihood as well; the second term keeps it (TRL calls its weight rpo_alpha).
        kept = -chosen_B.sum() / sum(self.targets[i] for i in batch)
        loss = objectives.dpo(chosen_B, rejected_B, before_B2[:, 0], before_B2[:, 1], self.recipe.beta)
        return loss + self.recipe.keep_chosen * kept
