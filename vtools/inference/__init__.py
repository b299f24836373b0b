"""Who answers: a server or a model in this process, asked again where that helps, and never twice for one answer."""
