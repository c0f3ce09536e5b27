"""Opens a report in Chromium without a screen (Qt's, PySide6), and prints as JSON what happens there.

python tests/browser.py PAGE [SCREENSHOT WIDTH light|dark]
"""

import json
import os
import sys

PAGE, SCREENSHOT, WIDTH, SCHEME = (*sys.argv[1:], *("", "1200", "light")[len(sys.argv) - 2 :])[:4]
FLAGS = f"--disable-gpu --blink-settings=preferredColorScheme={int(SCHEME == 'light')}"
os.environ |= {"QT_QPA_PLATFORM": "offscreen", "QTWEBENGINE_DISABLE_SANDBOX": "1", "QTWEBENGINE_CHROMIUM_FLAGS": FLAGS}

try:
    from PySide6.QtCore import QEventLoop, QTimer, QUrl
    from PySide6.QtWebEngineCore import QWebEnginePage
    from PySide6.QtWebEngineWidgets import QWebEngineView
    from PySide6.QtWidgets import QApplication
except ImportError as error:
    sys.stdout.write(json.dumps({"missing": str(error)}))
    sys.exit()

POINT = """(() => {
  const chart = document.querySelector(".chart"), view = chart.view, points = [];
  (function walk(mark, x, y) {
    for (const item of mark.items || []) {
      if (mark.marktype === "group") for (const below of item.items) walk(below, x + item.x, y + item.y);
      else if (mark.marktype === "symbol" && mark.role === "mark") points.push([item.x + x, item.y + y, item.datum]);
    }
  })(view.scenegraph().root, 0, 0);
  const [x, y, datum] = points.reduce((a, b) => a[1] > b[1] ? a : b);  // the lowest one, where it is not crowded
  const canvas = chart.querySelector("canvas"), box = canvas.getBoundingClientRect();
  const [left, top] = view.origin(), padding = view.padding();
  const place = {clientX: box.left + left + padding.left + x, clientY: box.top + top + padding.top + y, bubbles: true};
  canvas.dispatchEvent(new PointerEvent("pointermove", place));
  return JSON.stringify({
    evaluation: datum.evaluation,
    points: points.length,
    tooltip: document.querySelector("#vg-tooltip-element.visible")?.innerText ?? null,
  });
})()"""
FACTS = """JSON.stringify({
  charts: document.querySelectorAll(".chart").length, canvases: document.querySelectorAll(".chart canvas").length,
  images: document.images.length, wide: document.documentElement.scrollWidth - innerWidth,
  drawn: document.documentElement.dataset.drawn ?? null, requests: performance.getEntriesByType("resource").length,
})"""


class Page(QWebEnginePage):
    """Keeps what is said on the console, and by scripts that should not run."""

    console: list[str] = []

    def javaScriptConsoleMessage(self, level, message, line, source):
        self.console.append(message)

    def javaScriptAlert(self, origin, message):
        self.console.append(f"alert: {message}")


app = QApplication([])
view = QWebEngineView()
page = Page(view)
view.setPage(page)


def wait(milliseconds):
    loop = QEventLoop()
    QTimer.singleShot(milliseconds, loop.quit)
    loop.exec()


def run(script):
    found, loop = [], QEventLoop()
    page.runJavaScript(script, lambda value: (found.append(value), loop.quit()))
    QTimer.singleShot(10_000, loop.quit)
    loop.exec()
    return json.loads(found[0]) if found and found[0] else {}


view.resize(int(WIDTH), 1000)
view.show()
loaded = QEventLoop()
view.loadFinished.connect(loaded.quit)
view.load(QUrl.fromLocalFile(os.path.realpath(PAGE)))
loaded.exec()
for _ in range(200):
    wait(200)
    if run(FACTS).get("drawn"):
        break
found = run(FACTS) | run(POINT)
if SCREENSHOT:
    view.resize(int(WIDTH), 3000)
    wait(1500)
    view.grab().save(SCREENSHOT)
sys.stdout.write(json.dumps(found | {"console": page.console}))
