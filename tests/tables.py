"""Every table of the package that others may add to."""


def tables():
    from ssl_kd.checkpoints.formats import FORMATS
    from ssl_kd.data.augment import SCHEMES
    from ssl_kd.data.open import SOURCES
    from ssl_kd.distillation.between_terms import BETWEEN
    from ssl_kd.eval.datasets.published import MAKERS
    from ssl_kd.eval.evaluators import few_shot, knn, linear_probe, retrieval, robustness
    from ssl_kd.eval.evaluators.registry import EVALUATORS
    from ssl_kd.exporters.export import TARGETS
    from ssl_kd.models import factory
    from ssl_kd.objectives import DISTANCES, DIVERGENCES, PROJECTORS, RELATIONS, TARGET_NORMS, TERMS
    from ssl_kd.objectives.presets import CATALOGUE
    from ssl_kd.runtime.loggers import LOGS

    objectives = (CATALOGUE, TERMS, DISTANCES, TARGET_NORMS, PROJECTORS, RELATIONS, DIVERGENCES)
    training = (SCHEMES, SOURCES, factory.SOURCES, FORMATS, TARGETS, LOGS, BETWEEN)
    protocols = (table.PROTOCOLS for table in (knn, linear_probe, few_shot, retrieval, robustness))
    return [*objectives, *training, EVALUATORS, *protocols, MAKERS]
