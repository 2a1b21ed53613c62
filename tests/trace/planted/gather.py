"""Picking and placing by index: graph networks, experts, codebooks."""

import torch
import torch.nn.functional as F
from torch import nn

from tests.trace.planted.cases import floats, ids, planted


@planted((floats(4, 8), ids(4)), ("[4, 8]", "experts is [4]"), ("experts.unsqueeze(1)", "experts.unsqueeze(-1)"))
class ScatterOfAVector(nn.Module):
    def forward(self, gates, experts):
        return torch.zeros_like(gates).scatter(1, experts, 1.0)  # here


@planted((floats(5, 8), ids(2, 12)), ("edges is [2, 12]",), ("edges[1]", "edges[0]"))
class BothEndsOfTheEdges(nn.Module):
    def forward(self, nodes, edges):
        return torch.zeros_like(nodes).index_add(0, edges, nodes[edges[0]])  # here


@planted((floats(5, 8), ids(2, 12)), ("[12]", "messages is [10, 8]"))
class MessagesOfOtherEdges(nn.Module):
    def forward(self, nodes, edges):
        messages = nodes[edges[0, :10]]
        return torch.zeros_like(nodes).index_add(0, edges[1], messages)  # here


@planted((floats(4, 10, 50), ids(4, 10)), ("[4, 10, 50]", "targets is [4, 10]"), ("targets.unsqueeze(-1)",))
class GatherOfTheTargets(nn.Module):
    def forward(self, logits, targets):
        return logits.log_softmax(-1).gather(-1, targets)  # here


@planted((floats(2, 3),), ("x is [2, 3]", "dim 1 has 3 entries"), ("below 3",))
class ColumnsThatAreNotThere(nn.Module):
    def forward(self, x):
        return x[:, torch.arange(5)]  # here


@planted(
    (floats(10, 8), torch.arange(1, 11)),
    ("nodes is [10, 8]", "dim 0 has 10 entries", "10 is asked"),
    ("last one is 9",),
)
class NodesCountedFromOne(nn.Module):
    def forward(self, nodes, neighbours):
        return nodes[neighbours]  # here


@planted((floats(4, 8), ids(4, 6)), ("[4, 6]", "source is [4, 5]"))
class FewerSourcesThanPlaces(nn.Module):
    def forward(self, x, where):
        source = x[:, :5]
        return torch.zeros(4, 8).scatter_add(1, where, source)  # here


@planted(
    (floats(20, 2), floats(20, 2, 32)), ("weights is [20, 2]", "outputs is [20, 2, 32]"), ("weights.unsqueeze(-1)",)
)
class GatesWithoutWidth(nn.Module):
    def forward(self, weights, outputs):
        return (weights * outputs).sum(1)  # here


@planted(
    (floats(2, 49, 32), floats(512, 16)), ("[2, 49, 32]", "codebook is [512, 16]"), ("nn.Linear(32, 16)", "one width")
)
class CodesOfAnotherWidth(nn.Module):
    def forward(self, x, codebook):
        return torch.cdist(x, codebook).argmin(-1)  # here


@planted((floats(3, 4, 8), floats(3, 8)), ("queue is [3, 4, 8]", "keys is [3, 8]"), ("keys.unsqueeze(1)",))
class QueueOfKeys(nn.Module):
    def forward(self, queue, keys):
        return torch.cat([keys, queue], dim=1)  # here


@planted((floats(2, 6, 4), torch.ones(2, 5).bool()), ("[2, 5]", "x is [2, 6, 4]"))
class MaskOfAnotherLength(nn.Module):
    def forward(self, x, is_image):
        return x[is_image]  # here


@planted((floats(4, 8), ids(4, 2)), ("[4, 8]", "values is [4, 3]"))
class TopValuesOfAnotherNumber(nn.Module):
    def forward(self, x, top):
        values = x[:, :3]
        return torch.zeros_like(x).index_copy(1, top[0], values)  # here


@planted((floats(2, 7), floats(5, 16)), ("codes [2, 7] is float32", "[5, 16]"), ("codes.long()",))
class CodesNotWhole(nn.Module):
    def forward(self, codes, table):
        return F.embedding(codes, table)  # here
