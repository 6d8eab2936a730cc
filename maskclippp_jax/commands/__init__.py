"""What people type, one file a command: its flags, and `main`, which calls the wings below."""

# A line each, in the order of `maskclippp --help`.
COMMANDS = {
    "predict": "names the segments of pictures: overlay, label map, JSON with scores",
    "serve": "shows a model in the browser: drop a picture, type words, see its segments",
    "prepare": "makes a data set from official archives, or from your own pictures and masks",
    "train": "tunes a CLIP on masks; the same line again resumes",
    "evaluate": "measures models on ground-truth masks, or on those of a generator",
    "score": "measures predictions in files, ours or another tool's, without a model",
    "masks": "bundles of a generator's masks: looks at them, makes them, takes them apart",
    "names": "shows the class names of a data set, and which of them a training set has seen",
    "sweep": "trains and evaluates variants of an experiment: one table, one plot",
    "weights": "shows which published files are here, which are missing, and where they come from",
    "convert": "writes a model under other people's names; --list shows what can be read",
    "publish": "puts a tuned model on the hub, with a card that tells its numbers",
    "report": "makes one page of a run: curves, results, classes, pictures",
    "export": "takes a model away as ONNX or StableHLO, which run without this package",
    "plan": "compiles an experiment for devices you do not hold: memory, FLOPs, time",
    "parity": "compares this machine's results with stored ones of the reference",
}
