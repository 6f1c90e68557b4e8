"""LeNet-5 on handwritten digits, from the data to the pictures.

    python examples/lenet_digits.py [FOLDER [MNIST]]

Without a folder of MNIST's files it takes scikit-learn's digits of 8x8 pixels, enlarged to the 32x32 that LeNet-5 was
made for. It writes `lenet_curves.png`, `lenet_filters.png` and `lenet_feature_maps.png`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from fastconv import nn


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "fastconv-examples")
    folder.mkdir(parents=True, exist_ok=True)
    if len(sys.argv) > 2:
        data = nn.load_mnist(sys.argv[2])
        network = nn.LeNet5(seed=0)
    else:
        small = nn.load_digits()
        data = small._replace(x_train=small.x_train.repeat(4, axis=2).repeat(4, axis=3),
                              x_test=small.x_test.repeat(4, axis=2).repeat(4, axis=3))
        network = nn.LeNet5((1, 32, 32), padding=0, seed=0)
    print(f"{len(data.x_train):,} images to train on, {len(data.x_test):,} to test on")
    network.summary()

    history = network.fit(data.x_train, data.t_train, epochs=7, batch_size=50, optimizer=nn.Adam(0.001), seed=0,
                          validation_data=(data.x_test, data.t_test), progress=nn.terminal_progress())
    loss, accuracy = network.evaluate(data.x_test, data.t_test)
    print(f"test loss {loss:.3f}, test accuracy {accuracy:.2%}")
    probabilities = network.probabilities(data.x_test, batch_size=200)
    doubtful = np.argsort(probabilities.max(axis=1))[:5]
    print("least sure of:", ", ".join(f"a {data.t_test[i]}, taken for a {probabilities[i].argmax()} "
                                      f"({probabilities[i].max():.0%})" for i in doubtful))

    network.save(folder / "lenet.npz")
    again = nn.LeNet5(network.input_dim, padding=network.layers["Conv2d1"].padding)
    again.load(folder / "lenet.npz")
    print(f"saved and loaded again: test accuracy {again.evaluate(data.x_test, data.t_test)[1]:.2%}")

    nn.plot_learning_curves(history, folder / "lenet_curves.png", title="LeNet-5")
    nn.plot_filter_grid(network.params["Conv2d1.weight"], folder / "lenet_filters.png", title="first layer")
    nn.plot_feature_maps(network, data.x_test[0], folder / "lenet_feature_maps.png",
                         title=f"LeNet-5 looks at a {data.t_test[0]}")
    print(f"wrote lenet_curves.png, lenet_filters.png, lenet_feature_maps.png and lenet.npz to {folder}")


if __name__ == "__main__":
    main()
