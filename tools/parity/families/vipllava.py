"""ViP-LLaVA: as LLaVA-1.5, with the features of several encoder layers, never CLS among them."""

from __future__ import annotations

from foveate.tools.parity.families import llava


class Oracle(llava.Oracle):
    """transformers' ViP-LLaVA."""

    @property
    def keeps_cls(self) -> bool:
        """Never: transformers leaves CLS out whatever the configuration says."""
        return False

    @property
    def _feature_layer(self) -> int:
        """The deepest hidden state that is read, wherever it stands in the list."""
        chosen = self.config.vision_feature_layer
        states = int(self.config.vision_config.num_hidden_layers) + 1
        return max(int(one) % states for one in ([chosen] if isinstance(chosen, int) else chosen))
