"""Uses the page at /docs as a person would, in a Chromium that is there: enters a key, opens a model's operation, sends its example, reads the answer.

Usage: page.py CHROMIUM ADDRESS KEY MODEL [FOLDER]: with a folder, pictures of what is seen are left there.
"""

import asyncio
import base64
import json
import pathlib
import subprocess
import sys
import tempfile
import urllib.request

import aiohttp

PATIENCE = 60


class Tab:
    """A page, over Chromium's protocol for its developer tools."""

    def __init__(self, socket):
        self.socket, self.number, self.answers, self.events = socket, 0, {}, []
        self.reader = asyncio.create_task(self.read())

    async def read(self):
        async for message in self.socket:
            said = json.loads(message.data)
            if "id" in said:
                self.answers.pop(said["id"]).set_result(said)
            else:
                self.events.append(said)

    async def ask(self, method, **parameters):
        self.number += 1
        answer = self.answers[self.number] = asyncio.get_running_loop().create_future()
        await self.socket.send_json({"id": self.number, "method": method, "params": parameters})
        said = await asyncio.wait_for(answer, PATIENCE)
        assert "error" not in said, said
        return said["result"]

    async def run(self, script):
        said = await self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in said, said
        return said["result"].get("value")

    async def until(self, script):
        for _ in range(PATIENCE * 20):
            if value := await self.run(script):
                return value
            await asyncio.sleep(0.05)
        raise AssertionError((script, await self.run("document.body.innerText")))

    async def picture(self, folder, name, width, scheme):
        if folder:
            await self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            await self.ask("Emulation.setDeviceMetricsOverride", width=width, height=1200, deviceScaleFactor=1, mobile=width < 600)
            shown = await self.ask("Page.captureScreenshot", format="png")
            (pathlib.Path(folder) / f"{name}.png").write_bytes(base64.b64decode(shown["data"]))

    def said(self, method):
        return [event["params"] for event in self.events if event["method"] == method]


async def use(tab, address, key, model, folder):
    for domain in ("Page", "Runtime", "Network", "Log"):
        await tab.ask(f"{domain}.enable")
    await tab.ask("Page.addScriptToEvaluateOnNewDocument", source="window.violations = []; addEventListener('securitypolicyviolation', (event) => violations.push(event.blockedURI + ' ' + event.violatedDirective))")
    await tab.ask("Page.navigate", url=f"http://{address}/docs#%")
    # Nothing is known without a key.
    await tab.until("document.getElementById('state')?.textContent.includes('asks for a key')")
    assert await tab.run("document.querySelectorAll('details.operation').length") == 0
    # By keyboard alone: the skip link comes first, then the key.
    for _ in range(2):
        for kind in ("keyDown", "keyUp"):
            await tab.ask("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
    assert await tab.run("document.activeElement.id") == "key"
    await tab.ask("Input.insertText", text=key)
    for kind in ("keyDown", "keyUp"):
        await tab.ask("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r", windowsVirtualKeyCode=13)
    operation = await tab.until(f"[...document.querySelectorAll('details.operation')].find((one) => one.textContent.includes('/v2/models/{model}/infer'))?.id")
    await tab.picture(folder, "light", 1200, "light")
    await tab.run(f"document.getElementById('{operation}').querySelector('summary').click()")
    await tab.until(f"document.querySelector('#{operation} form')")
    await tab.run(f"document.querySelector('#{operation} form').requestSubmit()")
    answer = await tab.until(f"document.querySelector('#{operation} form [role=status] > pre')?.textContent")
    assert json.loads(answer)["model_name"] == model, answer
    status = await tab.run(f"document.querySelector('#{operation} form [role=status] > p').textContent")
    assert status.startswith("200 "), status
    command = await tab.run(f"document.querySelector('#{operation} form > pre').textContent")
    assert command.startswith("curl -X POST 'http://") and "Bearer $KEY" in command and key not in command, command
    # A query that is an object is sent by its members, and examples in JSON are JSON.
    assert await tab.run("document.getElementById('raw').hidden"), "a browser would follow the link without the key"
    assert await tab.run("text('a', 'application/json') === '\"a\"' && text('a', 'text/plain') === 'a' && kind(false) === 'nothing' && kind(null) === 'anything'")
    await tab.picture(folder, "dark", 1200, "dark")
    await tab.picture(folder, "phone", 390, "dark")
    if folder:
        # Nothing is wider than the screen.
        assert await tab.run("document.documentElement.scrollWidth <= innerWidth")
    # Each operation can be opened, and what it holds is words.
    await tab.run("document.querySelectorAll('details.operation').forEach((one) => { one.open = true; })")
    await tab.until("[...document.querySelectorAll('details.operation')].every((one) => one.childElementCount === 2)")
    for sign in ("[object ", "undefined"):
        assert sign not in await tab.run("document.body.textContent.replace(document.querySelector('script').textContent, '')"), sign
    await tab.run("document.getElementById('filter').value = 'no such operation'; document.getElementById('filter').dispatchEvent(new Event('input'))")
    assert await tab.run("[...document.querySelectorAll('section')].every((one) => one.hidden)")

    assert await tab.run("violations.length") == 0, await tab.run("violations")
    kept = await tab.run("localStorage.length + sessionStorage.length + document.cookie.length")
    assert kept == 0 and key not in await tab.run("location.href")
    asked = {event["request"]["url"] for event in tab.said("Network.requestWillBeSent")}
    assert asked and all(url.startswith(f"http://{address}/") for url in asked), asked
    wrong = tab.said("Runtime.exceptionThrown")
    assert not wrong, wrong
    print(f"{len(asked)} URLs, all of this server's")


async def main(chromium, address, key, model, folder=None):
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # As root in a container there is no sandbox to be had; it loads nothing but the page.
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-port=0", f"--user-data-dir={profile}"]
        browser = subprocess.Popen([chromium, *flags, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            port = pathlib.Path(profile) / "DevToolsActivePort"
            for _ in range(PATIENCE * 20):
                if port.exists() and port.read_text().count("\n"):
                    break
                assert browser.poll() is None, f"{chromium} ended: {browser.returncode}"
                await asyncio.sleep(0.05)
            number = port.read_text().split("\n")[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{number}/json/list") as listed:
                tabs = [tab for tab in json.load(listed) if tab["type"] == "page"]
            async with aiohttp.ClientSession() as session, session.ws_connect(tabs[0]["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                await use(Tab(socket), address, key, model, folder)
        finally:
            browser.kill()
            browser.wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
