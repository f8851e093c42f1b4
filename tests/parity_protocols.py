"""Protocols that run under mpsteps and under Scipion's pyworkflow, differing in the line below only."""

from mpsteps import GE, STATUS_NEW, STEPS_PARALLEL, BooleanParam, EnumParam, FloatParam, Integer, IntParam, NumericListParam, NumericRangeParam, Protocol, ProtStreamingBase, String, StringParam  # noqa: E501, I001

import os


def note(path, line):
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(fd, f"{line}\n".encode())
    os.close(fd)


class ParityBase(Protocol):
    """Steps that note when they begin and end: the order is compared."""

    def _defineParams(self, form):
        form.addSection(label="Input")
        form.addParam("n", IntParam, default=5, label="Number", validators=[GE(1)])
        form.addParallelSection(threads=3)

    def begin(self, name):
        note(self._getExtraPath("notes"), f"begin {name}")

    def end(self, name):
        note(self._getExtraPath("notes"), f"end {name}")


class ParityFanOut(ParityBase):
    """The example of the parallelization guide, with attributes of all kinds."""

    stepsExecutionMode = STEPS_PARALLEL

    def _insertAllSteps(self):
        self.failedItems = []
        self.stats = {}
        self.counts = {"done": 0}
        first = self._insertFunctionStep(self.convertStep, prerequisites=[])
        deps = []
        for i in range(self.n.get()):
            deps.append(self._insertFunctionStep("processStep", i, {"k": [i, "x"]}, prerequisites=first))
        chain = self._insertFunctionStep(self.countStep, "a", prerequisites=[])
        chain = self._insertFunctionStep(self.countStep, "b")
        self._insertFunctionStep(self.createOutputStep, prerequisites=[*deps, chain], needsGPU=False)

    def convertStep(self):
        self.begin(1)
        self.offset = 100
        self.label = "converted"
        self.end(1)

    def processStep(self, i, options):
        self.begin(i + 2)
        path = self._getExtraPath(f"result_{i}.txt")
        with open(path, "w") as f:
            f.write(f"{self.offset + i} {options['k']}")
        if i % 2:
            self.failedItems.append(i)
        self.stats[i] = {"mean": self.offset + i}
        self.end(i + 2)
        return [path]

    def countStep(self, name):
        self.counts["done"] += 1
        self.counts[name] = self.counts["done"]

    def createOutputStep(self):
        self.begin("output")
        total = sum(s["mean"] for s in self.stats.values())
        with self._lock:  # under Scipion, whose main thread writes to the same database
            self._defineOutputs(total=Integer(total), names=String(",".join(str(i) for i in sorted(self.failedItems))))
        self.end("output")


class ParityInstance(ParityFanOut):
    """Parallel by the constructor, as half of the plug-ins do it."""

    stepsExecutionMode = 0

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.stepsExecutionMode = STEPS_PARALLEL


class ParitySerial(ParityBase):
    """Serial: in order, also where nobody is a prerequisite."""

    def _insertAllSteps(self):
        self.order = []
        self._insertFunctionStep("oneStep", "a")
        self._insertFunctionStep(self.oneStep, "b", prerequisites=[])
        self._insertFunctionStep(self.oneStep, "c", prerequisites=[])
        self._insertFunctionStep(self.oneStep, "d", prerequisites=1)
        self._insertFunctionStep(self.oneStep, "e")

    def oneStep(self, name):
        self.order.append(name)


class ParityFails(ParityBase):
    """One step raises."""

    stepsExecutionMode = STEPS_PARALLEL

    def _insertAllSteps(self):
        self.items = []
        one = self._insertFunctionStep(self.goodStep, 1, prerequisites=[])
        two = self._insertFunctionStep(self.badStep, "mic_7.mrc", prerequisites=[one])
        self._insertFunctionStep(self.goodStep, 2, prerequisites=[two])

    def goodStep(self, i):
        self.items.append(i)

    def badStep(self, name):
        raise ValueError(f"cannot read {name}")


class ParitySerialFails(ParityFails):
    stepsExecutionMode = 0


class ParityMissingFile(ParityBase):
    """A result file that is not there."""

    stepsExecutionMode = STEPS_PARALLEL

    def _insertAllSteps(self):
        self._insertFunctionStep(self.fileStep, self._getExtraPath("there"), True)
        self._insertFunctionStep(self.fileStep, self._getExtraPath("not-there"), False)

    def fileStep(self, path, make):
        if make:
            with open(path, "w") as f:
                f.write("content")
        return path


class ParityInteractive(ParityBase):
    """Stops after a step that a person must look at."""

    def _insertAllSteps(self):
        self._insertFunctionStep(self.nothingStep)
        self._insertFunctionStep(self.nothingStep, interactive=True)
        self._insertFunctionStep(self.nothingStep)

    def nothingStep(self):
        pass


class ParityStreaming(ParityBase):
    """Old style: _stepsCheck inserts steps; the output waits for all of them."""

    stepsExecutionMode = STEPS_PARALLEL
    _stepsCheckSecs = 0.01

    def _insertAllSteps(self):
        self.items = []
        self.left = list(range(self.n.get()))
        self._insertFunctionStep(self.createOutputStep, wait=True, prerequisites=[])

    def _stepsCheck(self):
        output = self._steps[0]
        if self.left:
            new = [self._insertFunctionStep(self.itemStep, self.left.pop(0), prerequisites=[])]
            if self.left:
                new.append(self._insertFunctionStep(self.itemStep, self.left.pop(0), prerequisites=[]))
            output.addPrerequisites(*new)
            self.updateSteps()
        elif output.isWaiting():
            output.setStatus(STATUS_NEW)

    def itemStep(self, item):
        self.items.append(item)

    def createOutputStep(self):
        with self._lock:
            self._defineOutputs(count=Integer(len(self.items)))


class ParityGenerator(ProtStreamingBase):
    """New style: a generator step inserts the others."""

    def _defineParams(self, form):
        form.addSection(label="Input")
        form.addParam("n", IntParam, default=4, label="Number")
        self._defineStreamingParams(form)
        form.addParallelSection(threads=3)

    def stepsGeneratorStep(self):
        self.items = []
        ids = [self._insertFunctionStep(self.itemStep, i, prerequisites=[]) for i in range(self.n.get())]
        self._insertFunctionStep(self.createOutputStep, prerequisites=ids)

    def itemStep(self, item):
        with open(self._getExtraPath(f"item_{item}"), "w") as f:
            f.write(str(item * item))

    def createOutputStep(self):
        values = []
        for i in range(self.n.get()):
            with open(self._getExtraPath(f"item_{i}")) as f:
                values.append(int(f.read()))
        with self._lock:
            self._defineOutputs(total=Integer(sum(values)))


class ParityForm(ParityBase):
    """Params of all kinds, conditions, choices."""

    def _defineParams(self, form):
        form.addSection(label="Input")
        form.addParam("mode", EnumParam, choices=["fast", "exact"], default=1, label="Mode")
        form.addParam("useMask", BooleanParam, default=False, label="Use a mask")
        form.addParam("radius", FloatParam, default=2.5, condition="useMask and mode == 1", label="Radius",
                      validators=[GE(1)])
        form.addParam("title", StringParam, default="a title", label="Title")
        form.addParam("picks", NumericRangeParam, default="1,3-5", label="Picks")
        form.addParam("weights", NumericListParam, default="1 2x0.5", label="Weights")
        line = form.addLine("Range")
        line.addParam("low", IntParam, default=1, label="Low")
        line.addParam("high", IntParam, default=9, condition="low > 5 or title == 'other'", label="High")
        form.addParallelSection(threads=2)

    def _validate(self):
        return ["The range is empty."] if self.low >= self.high else []

    def look(self):
        """Everything that can be asked of the values, as plain data."""
        return {
            "text": self.getEnumText("mode"),
            "conditions": {n: bool(self.evalParamCondition(n)) for n in ("radius", "high", "mode", "title")},
            "picks": self.picks.getListFromRange(),
            "weights": self.weights.getListFromValues(caster=float),
            "values": [self.mode.get(), self.useMask.get(), self.radius.get(), self.title.get(), self.low.get()],
            "compared": [self.low == 1, self.low < 3, self.high >= self.low, self.title == "a title", self.mode != 0],
            "empty": [self.title.empty(), String().empty(), Integer().hasValue()],
            "threads": self.numberOfThreads.get(),
        }
