"""Pictures and pages of graphs and tapes.

    Graph or Tape --build--> Scene --view--> SceneView --formats--> SVG, DOT, Mermaid
                                 '-------------------------------> HTML page, JSON, Model Explorer

`scene` is the intermediate representation: plain data with everything a renderer needs.
"""
