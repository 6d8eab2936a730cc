"""The page: a model in the browser. Pictures come in, named segments go out (Gradio)."""
