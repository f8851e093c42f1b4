"""The graph of a protocol's steps, as `getStepsGraph()` gives it: nodes with parents and children from one root."""

from __future__ import annotations

from typing import Dict, Iterable, Iterator, List, Optional

from mpsteps.steps import Step

ROOT = "PROTOCOL"


class StepNode:
    """A step in the graph; `step` is None in the root."""

    def __init__(self, name: str, step: Optional[Step]) -> None:
        self._name = name
        self.step = step
        self._children: Dict[str, StepNode] = {}  # by name, so that an edge is there once
        self._parents: Dict[str, StepNode] = {}

    def getName(self) -> str:
        """The step's id as text; 'PROTOCOL' for the root."""
        return self._name

    def getLabel(self) -> str:
        """What to write into the node."""
        return self._name if self.step is None else str(self.step)

    def getChildren(self) -> List[StepNode]:
        """The nodes of the steps that wait for this one."""
        return list(self._children.values())

    getChilds = getChildren  # its name before Scipion 3.9

    def getParent(self) -> Optional[StepNode]:
        """The first of its parents; None in the root."""
        return next(iter(self._parents.values()), None)

    def getParents(self) -> List[StepNode]:
        """The nodes of its prerequisites; the root for a step that has none."""
        return list(self._parents.values())

    def addChild(self, *nodes: StepNode) -> None:
        """Add an edge to each of these."""
        for node in nodes:
            self._children[node._name] = node
            node._parents[self._name] = self

    def isRoot(self) -> bool:
        """Whether nothing comes before it."""
        return not self._parents

    def __repr__(self) -> str:
        return f"<StepNode {self.getLabel()}>"


class StepsGraph:
    """All steps below one root, by their names (ids as text)."""

    def __init__(self, steps: Iterable[Step]) -> None:
        self._nodes: Dict[str, StepNode] = {ROOT: StepNode(ROOT, None)}
        for step in steps:
            name = str(step.getObjId())
            self._nodes[name] = StepNode(name, step)
        for node in list(self._nodes.values()):
            if node.step is None:
                continue
            parents = [self._nodes[str(p)] for p in node.step.getPrerequisites() if str(p) in self._nodes]
            for parent in parents or [self.getRoot()]:
                parent.addChild(node)

    def getRoot(self) -> StepNode:
        """The node above all steps without prerequisites."""
        return self._nodes[ROOT]

    def getNode(self, name: object) -> Optional[StepNode]:
        """The node of a step id, or None."""
        return self._nodes.get(str(name))

    def getNodes(self) -> List[StepNode]:
        """All nodes, the root first, then by id."""
        return list(self._nodes.values())

    def getRootNodes(self) -> List[StepNode]:
        """The nodes without parents: the root alone."""
        return [node for node in self._nodes.values() if node.isRoot()]

    def getNodeNames(self) -> List[str]:
        """Their names."""
        return list(self._nodes)

    def __iter__(self) -> Iterator[StepNode]:
        return iter(self._nodes.values())

    def __len__(self) -> int:
        return len(self._nodes)
