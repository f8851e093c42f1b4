"""Protocols for real pyworkflow, one for each shape that parallel protocols of published plug-ins have.

They know nothing of mpsteps, but for the one with the mixin. Each leaves what it came to in outputs and in
`extra/result.json`, so that a run in threads can be compared with one in processes.
"""

import ctypes
import json
import multiprocessing
import os
import signal
import sys
import threading
import time

import pyworkflow.object as pwobj
import pyworkflow.protocol as pwprot
from pyworkflow.protocol import params
from pyworkflow.utils import Environ
from pyworkflowtests.objects import MockImage, MockSetOfImages

from mpsteps.scipion import ProcessSteps


class ShapeBase(pwprot.Protocol):
    """What they have in common: `n` items and three threads."""

    _label = None
    stepsExecutionMode = pwprot.STEPS_PARALLEL

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.stepsExecutionMode = pwprot.STEPS_PARALLEL  # as pyworkflow 3.8 wants it

    def _defineParams(self, form):
        form.addSection(label="Input")
        form.addParam("n", params.IntParam, default=4, label="Items")
        form.addParam("mode", params.StringParam, default="", label="Variant")
        self._more(form)
        form.addParallelSection(threads=3, mpi=0)

    def _more(self, form):
        pass

    def items(self):
        return range(1, self.n.get() + 1)

    def note(self, **values):
        with open(self._getExtraPath("result.json"), "w") as f:
            json.dump(values, f, sort_keys=True)

    def mark(self, name):
        with open(self._getExtraPath(name), "a") as f:
            f.write("x")


class ShapeFills(ShapeBase):
    """Steps that append, fill, count: lists, dicts, counters, an attribute of the class, a scalar."""

    _label = "fills"
    seen = []

    def _insertAllSteps(self):
        type(self).seen.clear()
        self.failed, self.stats, self.names, self.total = [], {}, set(), pwobj.Integer(0)
        self.counts = {"odd": 0, "even": 0}
        first = self._insertFunctionStep("prepareStep")
        deps = [self._insertFunctionStep(self.fillStep, i, prerequisites=[first]) for i in self.items()]
        self._insertFunctionStep("createOutputStep", prerequisites=deps)

    def prepareStep(self):
        self.offset = [100, 200]

    def fillStep(self, i):
        self.failed.append(i)
        self.stats[i] = {"square": i * i, "offset": self.offset[0] + i}
        self.counts["odd" if i % 2 else "even"] += 1
        self.names.add(f"item {i}")
        self.seen.append(i)
        self.total.increment()
        setattr(self, f"last{i}", pwobj.Float(i / 2))

    def createOutputStep(self):
        self.note(
            failed=sorted(self.failed), stats={str(k): v for k, v in self.stats.items()}, counts=self.counts,
            names=sorted(self.names), seen=sorted(self.seen), total=self.total.get(),
            lasts=[getattr(self, f"last{i}").get() for i in self.items()],
        )
        self._defineOutputs(outputTotal=pwobj.Integer(sum(self.counts.values())))


class ShapeScratch(ShapeBase):
    """Steps that use attributes as places for their own work, as they would local names; and one that nobody reads."""

    _label = "scratch"

    def _insertAllSteps(self):
        self.sums = {}
        deps = [self._insertFunctionStep(self.workStep, i, prerequisites=[]) for i in self.items()]
        self._insertFunctionStep(self.createOutputStep, prerequisites=deps)

    def workStep(self, i):
        self.current = f"item {i}"
        self.width = i * 7
        self.handle = ctypes.pointer((ctypes.c_int * i)())
        time.sleep(0.05)
        self.sums[i] = i  # in threads the others may be those of another step by now

    def createOutputStep(self):
        self.note(sums={str(k): v for k, v in self.sums.items()}, kind=self.current[:4])


class ShapeMixed(ProcessSteps, ShapeFills):
    """The same with the mixin."""

    _label = "mixed"


class ShapeLockOutputs(ShapeBase):
    """Each step registers its item in the output, under the lock, as the tutorial does."""

    _label = "lock outputs"

    def _insertAllSteps(self):
        deps = [self._insertFunctionStep(self.itemStep, i, prerequisites=[]) for i in self.items()]
        self._insertFunctionStep(self.closeStep, prerequisites=deps)

    def itemStep(self, i):
        with self._lock:
            output = getattr(self, "outputImages", None)
            if output is None:
                output = MockSetOfImages.create(self._getExtraPath())
                output.setStreamState(output.STREAM_OPEN)
                self._defineOutputs(outputImages=output)
            image = MockImage()
            image.setLocation(i, "stack.mrc")
            output.append(image)
            output.write()
            self._store(output)

    def closeStep(self):
        self._closeOutputSet()
        self.note(size=self.outputImages.getSize())


class ShapeOutputs(ShapeBase):
    """A step registers outputs, one after another and without the lock, while others end beside it."""

    _label = "outputs"

    def _insertAllSteps(self):
        self._insertFunctionStep(self.registerStep, prerequisites=[])
        for i in self.items():
            self._insertFunctionStep(self.itemStep, i, prerequisites=[])

    def registerStep(self):
        for i in range(10 * self.n.get()):
            self._defineOutputs(**{f"output{i}": pwobj.Integer(i)})

    def itemStep(self, i):
        self.mark(f"ran{i}")


class ShapeGenerator(pwprot.ProtStreamingBase):
    """Streaming, new style: a step that inserts the others while it runs."""

    _label = "generator"

    def _defineParams(self, form):
        form.addSection(label="Input")
        form.addParam("n", params.IntParam, default=4, label="Items")
        form.addParallelSection(threads=3, mpi=0)

    def stepsGeneratorStep(self):
        self.done = []
        deps = []
        for i in range(1, self.n.get() + 1):
            self.table = dict(getattr(self, "table", {}), **{f"item{i}": i * 10})
            deps.append(self._insertFunctionStep(self.itemStep, i, prerequisites=[], needsGPU=False))
            time.sleep(0.02)
        self._insertFunctionStep(self.createOutputStep, prerequisites=deps, needsGPU=False)

    def itemStep(self, i):
        self.done.append((i, self.table[f"item{i}"]))

    def createOutputStep(self):
        with open(self._getExtraPath("result.json"), "w") as f:
            json.dump(sorted(self.done), f)
        self._defineOutputs(outputCount=pwobj.Integer(len(self.done)))


class ShapeCheck(ShapeBase):
    """Streaming, old style: `_stepsCheck` inserts steps and lets the output step wait for them."""

    _label = "check"
    _stepsCheckSecs = 0.1

    def _insertAllSteps(self):
        self.arrived, self.processed = 0, {}
        self._insertFunctionStep(self.firstStep, prerequisites=[])
        self.outputIndex = self._insertFunctionStep(self.createOutputStep, wait=True, prerequisites=[])

    def firstStep(self):
        self.mark("first")

    def _stepsCheck(self):
        if self.arrived >= self.n.get():
            return
        self.arrived += 1
        outputStep = self._steps[self.outputIndex - 1]
        outputStep.addPrerequisites(self._insertFunctionStep(self.itemStep, self.arrived, prerequisites=[]))
        if self.arrived == self.n.get():
            outputStep.setStatus(pwprot.STATUS_NEW)
        self.updateSteps()

    def itemStep(self, i):
        self.processed[i] = i * i

    def createOutputStep(self):
        self.note(processed={str(k): v for k, v in sorted(self.processed.items())})
        self._defineOutputs(outputCount=pwobj.Integer(len(self.processed)))


class ShapeGpu(ShapeBase):
    """Steps on GPUs, of which each gets one, and one that needs none."""

    _label = "gpu"

    def _more(self, form):
        form.addHidden(params.USE_GPU, params.BooleanParam, default=True, label="Use GPU")
        form.addHidden(params.GPU_LIST, params.StringParam, default="0 1", label="GPUs")

    def _insertAllSteps(self):
        self.used = {}
        deps = [self._insertFunctionStep(self.gpuStep, i, prerequisites=[]) for i in self.items()]
        deps.append(self._insertFunctionStep(self.cpuStep, prerequisites=[], needsGPU=False))
        self._insertFunctionStep(self.createOutputStep, prerequisites=deps, needsGPU=False)

    def gpuStep(self, i):
        gpus = self._stepsExecutor.getGpuList()
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, gpus))
        time.sleep(0.05)
        self.runJob("echo", "%(GPU)s > " + self._getExtraPath(f"gpu{i}.txt"), env=Environ(os.environ))
        with open(self._getExtraPath(f"gpu{i}.txt")) as f:
            self.used[i] = (len(gpus), gpus[0] in (0, 1), f.read().split() == [str(g) for g in gpus])

    def cpuStep(self):
        self.used["cpu"] = self._stepsExecutor.getGpuList()

    def createOutputStep(self):
        self.note(used={str(k): v for k, v in self.used.items()})


class ShapeFails(ShapeBase):
    """Its second step fails in one of many ways, unless `extra/mended` is there; the others mark that they ran."""

    _label = "fails"

    def _insertAllSteps(self):
        deps = [self._insertFunctionStep(self.itemStep, i, prerequisites=[]) for i in self.items()]
        self._insertFunctionStep(self.createOutputStep, prerequisites=deps)

    def itemStep(self, i):
        if i == 2 and not os.path.exists(self._getExtraPath("mended")):
            self.fail(self.mode.get())
        elif i == 1:
            time.sleep(0.3)  # it is running when the other one fails
        self.mark(f"ran{i}")

    def fail(self, mode):
        if mode == "raise":
            raise ValueError("bad item 2")
        if mode == "sysexit":
            sys.exit("cannot go on")
        if mode == "osexit":
            os._exit(3)
        if mode == "segv":
            os.kill(os.getpid(), signal.SIGSEGV)
        if mode == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if mode == "job":
            self.runJob("false", "", env=Environ(os.environ))

    def createOutputStep(self):
        self._defineOutputs(outputCount=pwobj.Integer(self.n.get()))


class ShapeMakesSet(ShapeBase):
    """Makes a set for others to read."""

    _label = "makes a set"

    def _insertAllSteps(self):
        self._insertFunctionStep(self.createOutputStep)

    def createOutputStep(self):
        images = MockSetOfImages.create(self._getExtraPath())
        for i in range(1, 101):
            image = MockImage()
            image.setLocation(i, "input.mrc")
            images.append(image)
        images.write()
        self._defineOutputs(outputImages=images)


class ShapeReadsSet(ShapeBase):
    """All steps read one and the same input set at the same time, in both ways."""

    _label = "reads a set"

    def _more(self, form):
        form.addParam("inputImages", params.PointerParam, pointerClass="MockSetOfImages", label="Images")

    def _insertAllSteps(self):
        self.sums = {}
        self.first = next(iter(self.inputImages.get())).getObjId()  # leaves the connection open
        deps = [self._insertFunctionStep(self.readStep, i, prerequisites=[]) for i in self.items()]
        self._insertFunctionStep(self.createOutputStep, prerequisites=deps)

    def readStep(self, i):
        images = self.inputImages.get()
        total = sum(image.getObjId() for image in images)
        for k in range(1, 21):
            assert images[k].getObjId() == k
        self.sums[i] = total

    def createOutputStep(self):
        self.note(sums={str(k): v for k, v in self.sums.items()}, first=self.first)


class ShapePool(ShapeBase):
    """A step that computes in a multiprocessing.Pool of its own."""

    _label = "pool"

    def _insertAllSteps(self):
        self.results = []
        deps = [self._insertFunctionStep(self.poolStep, i, prerequisites=[]) for i in self.items()]
        self._insertFunctionStep(self.createOutputStep, prerequisites=deps)

    def poolStep(self, i):
        with multiprocessing.get_context("fork").Pool(2) as pool:
            self.results.append(sum(pool.map(abs, [-i] * 5)))

    def createOutputStep(self):
        self.note(results=sorted(self.results))


class ShapeFunctions(ShapeBase):
    """Steps by name, bound, of a module, runJob and copyFile; arguments that are live objects."""

    _label = "functions"

    def _insertAllSteps(self):
        self.got = []
        image = MockImage()
        image.setLocation(7, "live.mrc")
        deps = [
            self._insertFunctionStep("namedStep", "a", 1, prerequisites=[]),
            self._insertFunctionStep(self.boundStep, image, prerequisites=[]),
            self._insertRunJobStep("touch", self._getExtraPath("touched"), prerequisites=[]),
            self._insertFunctionStep(moduleStep, self._getExtraPath("module"), prerequisites=[]),
        ]
        self._insertFunctionStep("createOutputStep", prerequisites=deps)

    def _getEnviron(self):
        return Environ(os.environ)

    def namedStep(self, text, number):
        self.got.append([text, number])
        path = self._getExtraPath("named")
        self.mark("named")
        return [path]

    def boundStep(self, image):
        self.got.append(list(image.getLocation()))

    def createOutputStep(self):
        self.note(got=sorted(map(str, self.got)), files=[
            os.path.exists(self._getExtraPath(name)) for name in ("touched", "module", "named")
        ])


def moduleStep(path):
    with open(path, "w") as f:
        f.write("module")


class ShapeLive(ShapeBase):
    """A first step makes what cannot be pickled; the others use it. And an object with a lock that threads share."""

    _label = "live"

    def _insertAllSteps(self):
        self.book = Book()
        self.images = {i: MockImage() for i in self.items()}
        self.first = MockImage()
        self.sums = {}
        first = self._insertFunctionStep(self.makeStep)
        deps = [self._insertFunctionStep(self.useStep, i, prerequisites=[first]) for i in self.items()]
        deps += [self._insertFunctionStep(self.bookStep, i, prerequisites=[first]) for i in self.items()]
        self._insertFunctionStep(self.createOutputStep, prerequisites=deps)

    def makeStep(self):
        self.projector = ctypes.pointer((ctypes.c_int * 3)(50, 60, 70))

    def useStep(self, i):
        self.images[i].setLocation(i, f"stack{i}.mrc")
        if i == 1:
            self.first.setSamplingRate(2.5)
        self.sums[i] = sum(self.projector.contents) + i

    def bookStep(self, i):
        self.book.enter(i)

    def createOutputStep(self):
        self.note(
            images={str(i): image.getLocation() for i, image in self.images.items()}, rate=self.first.getSamplingRate(),
            sums={str(k): v for k, v in self.sums.items()}, book=sorted(self.book.entries),
        )


class Book:
    """Shared by threads, as tomo's TiltSeriesDict."""

    def __init__(self):
        self.entries = []
        self._lock = threading.Lock()

    def enter(self, i):
        with self._lock:
            self.entries.append(i)


class ShapeCpu(ShapeBase):
    """Pure Python that holds the GIL."""

    _label = "cpu"

    def _insertAllSteps(self):
        self.found = {}
        deps = [self._insertFunctionStep(self.computeStep, i, prerequisites=[]) for i in self.items()]
        self._insertFunctionStep(self.createOutputStep, prerequisites=deps)

    def computeStep(self, i):
        total = 0
        for k in range(int(self.mode.get() or 100000)):
            total += k * i % 7
        self.found[i] = total

    def createOutputStep(self):
        self._defineOutputs(outputTotal=pwobj.Integer(sum(self.found.values())))


class ShapeEmpty(ShapeBase):
    """Nothing but steps."""

    _label = "empty"

    def _insertAllSteps(self):
        for i in self.items():
            self._insertFunctionStep(self.emptyStep, i, prerequisites=[])

    def emptyStep(self, i):
        time.sleep(float(self.mode.get() or 0))


class ShapeSleeps(ShapeBase):
    """Steps that start a program each, which sleeps for a long time; their pids are in `extra`."""

    _label = "sleeps"

    def _insertAllSteps(self):
        for i in self.items():
            self._insertFunctionStep(self.sleepStep, i, prerequisites=[])

    def _getEnviron(self):
        return Environ(os.environ)

    def sleepStep(self, i):
        with open(self._getExtraPath(f"pid{i}"), "w") as f:
            f.write(str(os.getpid()))
        self.runJob("echo", f"$$ > {self._getExtraPath('program')}{i}; sleep 1000")


class ShapeHides(ShapeBase):
    """Steps that do what belongs into the main process in ways that no look at their source finds."""

    _label = "hides"

    def _insertAllSteps(self):
        self.ran = []
        deps = [self._insertFunctionStep(self.hideStep, i, prerequisites=[]) for i in (1, 2)]
        self._insertFunctionStep(self.createOutputStep, prerequisites=deps)

    def hideStep(self, i):
        self.ran.append(i)
        if i == 1:
            HIDDEN[self.mode.get()](self)

    def addedStep(self, i):
        self.ran.append(i)

    def createOutputStep(self):
        self.note(ran=sorted(self.ran), others=[hasattr(self, "handle"), hasattr(self, "table")])


def _call(name, *args):
    return lambda prot: getattr(prot, name)(*args)


def _defines(prot):
    images = MockSetOfImages(filename=prot._getExtraPath("own.sqlite"))
    image = MockImage()
    image.setLocation(1, "own.mrc")
    images.append(image)
    getattr(prot, "_define" + "Outputs")(outputImages=images, outputNumber=pwobj.Integer(5))


def _locks(prot):
    with getattr(prot, "_lo" + "ck"):
        prot.ran.append(100)


def _unpicklable(prot):
    prot.handle = threading.Lock()


def _live(prot):
    prot.table = {"lock": threading.Lock()}


def _stores(prot):
    prot.count = pwobj.Integer(7)
    getattr(prot, "_sto" + "re")()


HIDDEN = {
    "insert": _call("_insertFunctionStep", "addedStep", 50),
    "define": _defines,
    "store": _stores,
    "lock": _locks,
    "unpicklable": _unpicklable,
    "close": _call("_closeOutputSet"),
    "live": _live,
}
