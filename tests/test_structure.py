"""How the modules hang together."""

from graphlib import TopologicalSorter

import grimp


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = grimp.build_graph("mplus", "mplus_integrations")
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert len(imports) > 200, "the graph holds the package"
    TopologicalSorter(imports).prepare()  # a CycleError names the modules of a circle
