"""Losses with targets of another shape or type: a language model, classifiers, segmentation, CLIP, speech."""

import torch
import torch.nn.functional as F
from torch import nn

from tests.trace.planted.cases import floats, ids, planted


@planted(
    (floats(2, 10, 50), ids(2, 10)), ("[2, 10, 50]", "[2, 10]"), ("logits.flatten(0, 1)", "logits.transpose(1, 2)")
)
class ClassesLast(nn.Module):
    def forward(self, logits, targets):
        return F.cross_entropy(logits, targets)  # here


@planted((floats(2, 10, 10), ids(2, 10)[:, :9]), ("logits.flatten(0, 1) is [20, 10]", "targets.flatten() is [18]"))
class ClassesLastAndOneShort(nn.Module):
    def forward(self, logits, targets):
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())  # here


@planted((floats(4, 5), ids(4, 5, high=2)), ("logits is [4, 5]", "targets is [4, 5]"), ("argmax", ".float()"))
class OneHotOfWholeNumbers(nn.Module):
    def __init__(self):
        super().__init__()
        self.loss = nn.CrossEntropyLoss()

    def forward(self, logits, targets):
        return self.loss(logits, targets)  # here


@planted(
    (floats(4, 5), ids(4, 1)), ("logits is [4, 5]", "targets is [4, 1]"), ("targets.squeeze(1)", "targets.squeeze(-1)")
)
class TargetsAsAColumn(nn.Module):
    def forward(self, logits, targets):
        return F.cross_entropy(logits, targets)  # here


@planted(
    (floats(4, 1), floats(4)),
    ("logits is [4, 1]", "targets is [4]"),
    ("logits.squeeze(-1)", "targets.unsqueeze(-1)", "logits.squeeze(1)", "targets.unsqueeze(1)"),
)
class BinaryColumn(nn.Module):
    def __init__(self):
        super().__init__()
        self.loss = nn.BCEWithLogitsLoss()

    def forward(self, logits, targets):
        return self.loss(logits, targets)  # here


@planted(
    (floats(4), ids(4, high=2)),
    ("logits [4] is float32", "targets [4] is int64"),
    ("targets.float()", "targets.to(torch.float32)"),
)
class BinaryWholeNumbers(nn.Module):
    def forward(self, logits, targets):
        return F.binary_cross_entropy_with_logits(logits, targets)  # here


@planted((floats(4, 10), ids(4)), ("[4, 10]", "labels is [4]"), ("one_hot(labels, 10)",))
class MultiLabelIds(nn.Module):
    def forward(self, x, labels):
        return F.binary_cross_entropy(x.sigmoid(), labels)  # here


@planted((floats(2, 5, 8, 8), ids(2, 1, 8, 8)), ("[2, 5, 8, 8]", "[2, 1, 8, 8]"), ("masks.squeeze(1)",))
class MasksWithAChannel(nn.Module):
    def forward(self, logits, masks):
        return F.cross_entropy(logits, masks)  # here


@planted((floats(2, 5, 8, 8), ids(2, 16, 16)), ("[2, 5, 8, 8]", "[2, 16, 16]"), ("interpolate",))
class MasksOfAnotherSize(nn.Module):
    def forward(self, logits, masks):
        return F.cross_entropy(logits, masks)  # here


@planted((floats(2, 10, 50), ids(2, 10)), ("[18, 50]", "[20]"), ("[:, 1:]",))
class TargetsNotShifted(nn.Module):
    def forward(self, logits, ids):
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids.flatten())  # here


@planted((floats(5, 5), ids(5) + 1), ("targets holds classes from 1 to 5", "[5, 5]"), ("targets - 1",))
class ClassesFromOne(nn.Module):
    def forward(self, logits, targets):
        return F.cross_entropy(logits, targets)  # here


@planted((floats(4, 3), floats(4, 2)), ("boxes is [4, 3]", "truth is [4, 2]"), ("2 outputs",))
class RegressionOfAnotherWidth(nn.Module):
    def forward(self, boxes, truth):
        return F.l1_loss(boxes, truth)  # here


@planted((floats(4, 6), ids(4)), ("logits is [4, 6]", "self.weight is [5]"), ("6 weights", "[6]"))
class ClassWeightsOneShort(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.ones(5)

    def forward(self, logits, targets):
        return F.cross_entropy(logits, targets, weight=self.weight)  # here


@planted((floats(4, 32), floats(4, 48)), ("image is [4, 32]", "text.T is [48, 4]"), ("nn.Linear(48, 32)", "one width"))
class ContrastOfTwoWidths(nn.Module):
    def forward(self, image, text):
        return image @ text.T  # here


@planted((floats(3, 20, 8), ids(3, 4) + 1), ("[3, 20, 8]",), ("x.transpose(0, 1)", "probabilities.transpose(0, 1)"))
class SpeechBatchFirst(nn.Module):
    def forward(self, x, targets):
        probabilities = x.log_softmax(-1)
        lengths, sizes = torch.full((3,), 20), torch.full((3,), 4)
        return F.ctc_loss(probabilities, targets, lengths, sizes)  # here


@planted((floats(4, 10), floats(4, 5)), ("student is [4, 10]", "teacher is [4, 5]"))
class StudentAndTeacher(nn.Module):
    def forward(self, student, teacher):
        return F.kl_div(student, teacher)  # here


@planted((floats(6, 5), floats(4)), ("logits is [6, 5]", "targets.long() is [4]"))
class OtherNumberOfTargets(nn.Module):
    def forward(self, logits, targets):
        return F.nll_loss(logits, targets.long())  # here
