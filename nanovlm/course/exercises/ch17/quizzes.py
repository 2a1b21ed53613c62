"""Chapter 17: what to predict."""

from __future__ import annotations

from nanovlm.course.quizzes import Quiz

Quiz(
    id="ch17.article",
    question="A widely read article describes SmolVLM as a light CNN encoder, cross-attention fusion with learned weights, "
    "and parameters shared between the modalities. How many of these three are in its published code?",
    choices=("all three", "the fusion and the sharing", "the encoder alone", "none"),
    right=3,
    because=(
        "They sound plausible for a small model. The next cells look into the code.",
        "The image tokens are put into the sequence, and self-attention does the rest. There is no second module.",
        "The encoder is SigLIP's vision transformer.",
        "SmolVLM is a vision transformer, pixel shuffle, one linear layer and a Llama decoder: what you have built.",
    ),
)

Quiz(
    id="ch17.kernel",
    question="A 3x3 convolution from 64 channels to 64 has 36,864 weights. How many has a depthwise 3x3 kernel followed by "
    "a pointwise matrix, without biases?",
    choices=("18,432", "4,672", "576", "36,864"),
    right=1,
    because=(
        "That is half. The saving is larger, because places and channels are no longer mixed in one product.",
        "9 weights for each of 64 channels and a matrix of 64 x 64: 576 + 4,096.",
        "That is the depthwise half alone. The pointwise matrix comes on top.",
        "That is the full kernel: 9 x 64 x 64.",
    ),
)

Quiz(
    id="ch17.pooled",
    question="The encoder's 64 vectors are averaged to one, and all four image tokens are copies of it. The model learns to "
    "write captions such as “top left: red circle”. What do you expect beside the same encoder with its map?",
    choices=(
        "it loses little: one vector of 64 numbers has room for four shapes",
        "it names fewer things, and of those that it names many in a wrong place",
        "it names as many things, all of them in a wrong place",
    ),
    right=1,
    because=(
        "There is room. But a mean is the same whatever the order of what it is taken of, so something has to write the "
        "place into the numbers before, and a short training does not get there.",
        "Colour, form and place of four shapes arrive as one sum. What belongs together has to be disentangled, and the "
        "place, which the map gives for nothing, has to be written into the numbers first.",
        "The names suffer, too: in a sum, whose colour is whose form is as unclear as the place.",
    ),
)

Quiz(
    id="ch17.gate",
    question="A gated layer is put into a trained model: gate 0, and the layer's weights 0 as well, to be on the safe side. "
    "What happens in training?",
    choices=(
        "it learns slowly at first and then as usual",
        "the gate opens, and the layer stays zero",
        "neither ever changes",
    ),
    right=2,
    because=(
        "Slowly would need some gradient. Write down the derivative of gate x output with respect to each of the two.",
        "The gate's gradient is the layer's output, which is 0.",
        "The gradient of each factor is the other factor, and both are 0. It is a saddle point on which training stands "
        "still, without an error.",
    ),
)

Quiz(
    id="ch17.sharing",
    question="All blocks of a decoder share one set of weights, so that it has half the parameters of one with two blocks. How "
    "much less work is a forward pass?",
    choices=("half", "none", "a quarter"),
    right=1,
    because=(
        "Count products, not weights: each block is still run through.",
        "Every pass through the block is computed. Sharing saves memory and bytes on disk, and no operations.",
        "Nothing is saved in operations, since each block is still run through.",
    ),
)

Quiz(
    id="ch17.experts",
    question="A router sends each token to one of two MLPs. Without a balance loss, what does training tend to do?",
    choices=(
        "split words and image tokens neatly",
        "send nearly all tokens to one expert",
        "give each expert half of the tokens",
    ),
    right=1,
    because=(
        "One could hope for it. Nothing in the loss asks for it.",
        "The expert that is a little better gets more tokens, so more gradient, so it becomes better still.",
        "An even split is what the balance loss asks for. It does not come by itself.",
    ),
)
