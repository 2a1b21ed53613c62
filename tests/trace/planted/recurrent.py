"""Recurrent models: a tagger, an encoder with a given state, cells in a loop, a translator with attention."""

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from tests.trace.planted.cases import floats, planted


@planted((floats(2, 10, 24),), ("x is [2, 10, 24]", "input_size = 32"), ("nn.LSTM(24, 64",))
class LstmOfAnotherWidth(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(32, 64, batch_first=True)

    def forward(self, x):
        return self.lstm(x)[0]  # here


@planted(
    (floats(4, 10, 16), floats(1, 4, 32)),
    ("[4, 10, 16]", "[1, 4, 32]", "[1, 10, 32]"),
    ("batch_first=True", "x.transpose(0, 1)"),
)
class BatchFirstForgotten(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(16, 32)

    def forward(self, x, state):
        return self.gru(x, state)[0]  # here


@planted((floats(4, 10, 16), floats(1, 4, 32)), ("[1, 4, 32]", "[2, 4, 32]"), ("[2, 4, 32]",))
class StateOfOneLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(16, 32, num_layers=2, batch_first=True)

    def forward(self, x, state):
        return self.lstm(x, (state, state))[0]  # here


@planted((floats(4, 10, 16),), ("[4, 10, 64]", "in_features = 32"), ("nn.Linear(64, 5)",))
class HeadOfOneDirection(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(16, 32, batch_first=True, bidirectional=True)
        self.head = nn.Linear(32, 5)

    def forward(self, x):
        out, _ = self.lstm(x)
        return self.head(out)  # here


@planted((floats(4, 10, 12),), ("x[:, t] is [4, 12]", "input_size = 16"), ("nn.LSTMCell(12, 32",))
class CellOfAnotherWidth(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.LSTMCell(16, 32)

    def forward(self, x):
        state = None
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)  # here
        return state[0]


@planted((floats(4, 16), floats(4, 64)), ("state is [4, 64]", "hidden_size = 32"), ("nn.GRUCell(16, 64", "[4, 32]"))
class StateOfAnotherWidth(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(16, 32)

    def forward(self, x, state):
        return self.cell(x, state)  # here


@planted((floats(4, 16), floats(3, 32)), ("x is [4, 16]", "state is [3, 32]"), ("[4, 32]",))
class StateOfAnotherBatch(StateOfAnotherWidth):
    def forward(self, x, state):
        return self.cell(x, state)  # here


@planted((floats(2, 10, 16),), ("[2, 10, 32]",), ("self.lstm(x)[0]", "out, "))
class TupleIntoTheHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(16, 32, batch_first=True), nn.Linear(32, 5)

    def forward(self, x):
        return self.head(self.lstm(x))  # here


@planted(
    (floats(4, 10, 32), floats(4, 32)),
    ("state is [4, 32]", "encoded is [4, 10, 32]"),
    ("state.unsqueeze(1).expand(-1, 10, -1)",),
)
class AdditiveAttention(nn.Module):
    def forward(self, encoded, state):
        return torch.cat([state, encoded], dim=2)  # here


@planted((floats(2, 16, 4, 4),), ("x is [2, 16, 4, 4]", "4 dims"), ("x.flatten(2).transpose(1, 2)",))
class ImageIntoGru(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(16, 32, batch_first=True)

    def forward(self, x):
        return self.gru(x)[0]  # here


@planted((floats(4, 10, 16), torch.tensor([10, 8, 7, 3])), ("[4, 10, 16]", "lengths is [4]"), ("batch_first=True",))
class PackedTimeFirst(nn.Module):
    def forward(self, x, lengths):
        return pack_padded_sequence(x, lengths).data  # here
