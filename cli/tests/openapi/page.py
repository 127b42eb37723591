"""Uses the page at /docs as a person would, in a Chromium that is there.

Usage: page.py CHROMIUM CASE ADDRESS KEY [ARGUMENT...], where a case is
    use MODEL [FOLDER]     enters a key, opens a model's operation, sends its example, reads the answer; with a folder, pictures of what is seen are left there
    hostile MODEL TEXT...  texts of the service and the model that would be HTML, or end a command's quotes, are shown as they are
    long                   of a long answer the beginning is shown
    endless                an answer that has no end is shown as it comes, and stopped
"""

import asyncio
import base64
import json
import pathlib
import shlex
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


async def open_page(tab, address):
    for domain in ("Page", "Runtime", "Network", "Log"):
        await tab.ask(f"{domain}.enable")
    await tab.ask("Page.addScriptToEvaluateOnNewDocument", source="window.violations = []; addEventListener('securitypolicyviolation', (event) => violations.push(event.blockedURI + ' ' + event.violatedDirective))")
    await tab.ask("Page.navigate", url=f"http://{address}/docs#%")


async def give_key(tab, key):
    await tab.until("document.getElementById('state')?.textContent.includes('asks for a key')")
    await tab.run(f"document.getElementById('key').value = {json.dumps(key)}; document.getElementById('access').requestSubmit()")


async def open_operation(tab, path, method="GET"):
    """The selector of an operation, which is opened."""
    wanted = f"[...document.querySelectorAll('details.operation')].find((one) => one.querySelector('.path').textContent === {json.dumps(path)} && one.querySelector('.method').textContent === '{method}')?.id"
    operation = "#" + await tab.until(wanted)
    await tab.run(f"document.querySelector('{operation} > summary').click()")
    await tab.until(f"document.querySelector('{operation} form')")
    return operation


async def nothing_went_wrong(tab, address):
    """Neither policy nor script was in anybody's way, and nobody else was asked; how many URLs were."""
    assert await tab.run("violations.length") == 0, await tab.run("violations")
    asked = {event["request"]["url"] for event in tab.said("Network.requestWillBeSent")}
    assert asked and all(url.startswith(f"http://{address}/") for url in asked), asked
    wrong = tab.said("Runtime.exceptionThrown")
    assert not wrong, wrong
    return len(asked)


async def hostile(tab, address, key, model, *texts):
    await open_page(tab, address)
    await give_key(tab, key)
    operation = await open_operation(tab, f"/v2/models/{model}/infer", "POST")
    # Each operation, and each part of a schema in it, is opened.
    await tab.run("document.querySelectorAll('details.operation').forEach((one) => { one.open = true; })")
    await tab.until("[...document.querySelectorAll('details.operation')].every((one) => one.childElementCount === 2)")
    for _ in range(6):
        await tab.run(f"document.querySelectorAll('{operation} details').forEach((one) => {{ one.open = true; }})")
        await asyncio.sleep(0)
    seen = await tab.until(f"document.querySelector('{operation}').textContent + document.title + document.getElementById('title').textContent")
    for text in texts:
        # In JSON its quotes are escaped.
        assert text in seen or json.dumps(text)[1:-1] in seen, (text, seen[:2000])
    made = await tab.run("document.querySelectorAll('script').length + ' ' + document.querySelectorAll('img, b, i, iframe, svg, [onerror], [onclick]').length")
    assert made == "1 0", made
    # What a terminal makes of the command is the body that is in the page.
    command = await tab.run(f"document.querySelector('{operation} form > pre').textContent")
    body = await tab.run(f"document.querySelector('{operation} form textarea').value")
    words = shlex.split(command.replace("\\\n", " "))
    assert words[words.index("--data-raw") + 1] == body, (command, body)
    assert any(text in str(json.loads(body)) for text in texts), body
    await tab.run(f"document.querySelector('{operation} form').requestSubmit()")
    status = await tab.until(f"document.querySelector('{operation} form [role=status] > pre') && document.querySelector('{operation} form [role=status] > p').textContent")
    assert status.startswith("200 "), status
    await nothing_went_wrong(tab, address)


async def long(tab, address, key):
    await open_page(tab, address)
    await give_key(tab, key)
    operation = await open_operation(tab, "/openapi.json")
    await tab.run(f"document.querySelector('{operation} form').requestSubmit()")
    answer = await tab.until(f"document.querySelector('{operation} form [role=status] > pre')?.textContent")
    beginning, end = answer.removesuffix("\n… the rest is not shown"), 64 * 1024
    # Of bytes, of which a character may have several.
    assert beginning != answer and end - 1024 < len(beginning) <= end, (len(answer), answer[-200:])
    whole = await tab.run(f"fetch('/openapi.json', {{ headers: {{ Authorization: 'Bearer {key}' }} }}).then((answer) => answer.text())")
    assert len(whole) > len(beginning) and whole.startswith(beginning), (whole[:200], beginning[:200])
    await nothing_went_wrong(tab, address)


async def endless(tab, address, _):
    await open_page(tab, address)
    operation = await open_operation(tab, "/busy")
    shown = f"document.querySelector('{operation} form [role=status] > pre')?.textContent"
    stop = f"[...document.querySelectorAll('{operation} form button')].find((one) => one.textContent === 'Stop')"
    assert await tab.run(f"{stop}.hidden")
    await tab.run(f"[...document.querySelectorAll('{operation} form label')].find((one) => one.textContent === 'watch').querySelector('input').value = '1'")
    await tab.run(f"document.querySelector('{operation} form').requestSubmit()")
    # It is there while more is to come.
    await tab.until(f"{shown}?.startsWith('data: {{')")
    assert not await tab.run(f"{stop}.hidden")
    watching = "fetch('/metrics').then((answer) => answer.text()).then((text) => text.split('\\n').includes('outrigger_watchers %d'))"
    await tab.until(watching % 1)
    await tab.run(f"{stop}.click()")
    said = await tab.until(f"{stop}.hidden && {shown}")
    assert said.startswith("data: {") and said.endswith("\n… stopped"), said
    # The replica is rid of the reader.
    await tab.until(watching % 0)
    # Another time it begins anew.
    await tab.run(f"document.querySelector('{operation} form').requestSubmit()")
    await tab.until(f"{shown}?.startsWith('data: {{') && !{shown}.includes('stopped')")
    await tab.run(f"{stop}.click()")
    await nothing_went_wrong(tab, address)


async def use(tab, address, key, model, folder=None):
    await open_page(tab, address)
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

    kept = await tab.run("localStorage.length + sessionStorage.length + document.cookie.length")
    assert kept == 0 and key not in await tab.run("location.href")
    print(f"{await nothing_went_wrong(tab, address)} URLs, all of this server's")


CASES = {"use": use, "hostile": hostile, "long": long, "endless": endless}


async def main(chromium, case, *arguments):
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
                await CASES[case](Tab(socket), *arguments)
        finally:
            browser.kill()
            browser.wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
