"""How the page looks beyond gradio's theme: fonts of the visitor's own machine, and room on a phone."""

CSS = """
.gradio-container { width: 100% !important; max-width: 960px !important; margin: 0 auto !important; }
.gradio-container .column { width: 100%; }
.gradio-container .main.fillable { padding: 12px 12px 0 !important; }
#heading p { font-size: 1.15rem; font-weight: 600; }
#chat { min-height: 320px; height: calc(100dvh - 320px) !important; border: 0; }
#chat .message img, #chat .image-container img { max-height: 160px; width: auto; }
#times { min-height: 1.4em; }
#times p { font-size: 0.8rem; color: var(--body-text-color); opacity: 0.75; }
/* gradio's button that would send a picture to another server, by its drawing: its name is in the visitor's language */
#chat button:has(path[d^="M23,20a5"]) { display: none; }
footer { display: none !important; }
@media (max-width: 640px) {
  .gradio-container .main.fillable { padding: 8px 8px 0 !important; }
  #chat { height: calc(100dvh - 310px) !important; }
}
"""
