#!/usr/bin/env python3
"""Renders the templates below with jinja2, set up as transformers sets it up, into chat/renderings.json.

The templates are this project's own wording of the constructs that published families use; the test renders them with
pith and compares text or the fact of an error. Needs jinja2 (any 3.x). Run when a template is added.
"""
import datetime
import json
import time
from pathlib import Path

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

NOW = 1718000000  # 2024-06-10, noon is far from any time zone's midnight
BOS, EOS = "<s>", "</s>"


class Generation(jinja2.ext.Extension):
    """{% generation %}: marks text for training and prints it."""
    tags = {"generation"}

    def parse(self, parser):
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=lineno)


def environment():
    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                        extensions=[Generation, jinja2.ext.loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda form: datetime.datetime.fromtimestamp(NOW).strftime(form)
    return env


TEMPLATES = {}

TEMPLATES["chatml"] = r"""{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\n' }}
{% endif %}
"""

TEMPLATES["llama-2"] = r"""{%- if messages[0]['role'] == 'system' -%}
  {%- set rest = messages[1:] -%}
  {%- set preface = messages[0]['content'] -%}
{%- else -%}
  {%- set rest = messages -%}
  {%- set preface = false -%}
{%- endif -%}
{%- for turn in rest -%}
  {%- if (turn['role'] == 'user') != (loop.index0 % 2 == 0) -%}
    {{ raise_exception('Turns must go user, assistant, user, ...') }}
  {%- endif -%}
  {%- if loop.index0 == 0 and preface != false -%}
    {%- set body = '<<SYS>>\n' + preface + '\n<</SYS>>\n\n' + turn['content'] -%}
  {%- else -%}
    {%- set body = turn['content'] -%}
  {%- endif -%}
  {%- if turn['role'] == 'user' -%}
    {{ bos_token + '[INST] ' + body.strip() + ' [/INST]' }}
  {%- elif turn['role'] == 'assistant' -%}
    {{ ' ' + body.strip() + ' ' + eos_token }}
  {%- endif -%}
{%- endfor -%}
"""

TEMPLATES["llama-3"] = r"""{% set loop_messages = messages %}{% for message in loop_messages %}{% set piece = '<|start_header_id|>' + message['role'] + '<|end_header_id|>

' + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set piece = bos_token + piece %}{% endif %}{{ piece }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>

' }}{% endif %}"""

TEMPLATES["llama-3.1"] = r"""{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not tools_in_user_message is defined %}
    {%- set tools_in_user_message = true %}
{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}

{#- The first message may be the system's; take it out. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}

{#- The header says what the model knows. #}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\n" }}
{%- endif %}
{{- "Knowledge ends: December 2023\n" }}
{{- "Today: " + date_string + "\n\n" }}
{%- if tools is not none and not tools_in_user_message %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\n\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("One call at a time.") }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""

TEMPLATES["mistral-v1"] = r"""{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"""

TEMPLATES["mistral-v3"] = r"""{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}

{#- Roles take turns, tool messages aside. #}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or message.role == "tool_results" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("Roles take turns: user, assistant, user, ...") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}

{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}{{- tools|tojson }}{{- "]" + "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\n\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- elif message["role"] == "tool_results" or message["role"] == "tool" %}
        {%- if message.content is defined and message.content.content is defined %}
            {%- set content = message.content.content %}
        {%- else %}
            {%- set content = message.content %}
        {%- endif %}
        {{- '[TOOL_RESULTS] {"content": ' + content|string + "}[/TOOL_RESULTS]" }}
    {%- else %}
        {{- raise_exception("No other roles.") }}
    {%- endif %}
{%- endfor %}
"""

TEMPLATES["zephyr"] = r"""{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>
'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""

TEMPLATES["gemma"] = r"""{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('There is no system role here') }}{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Turns must alternate') }}{% endif %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '
' + message['content'] | trim + '<end_of_turn>
' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model
'}}{% endif %}"""

TEMPLATES["gemma-3"] = r"""{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '

' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '

' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Turns must alternate") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '
' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}
                {{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Content of an unknown kind") }}
    {%- endif -%}
    {{ '<end_of_turn>
' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model
'}}
{%- endif -%}
"""

TEMPLATES["phi-3"] = r"""{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}{{'<|system|>
' + message['content'] + '<|end|>
'}}{% elif message['role'] == 'user' %}{{'<|user|>
' + message['content'] + '<|end|>
'}}{% elif message['role'] == 'assistant' %}{{'<|assistant|>
' + message['content'] + '<|end|>
'}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>
' }}{% else %}{{ eos_token }}{% endif %}"""

TEMPLATES["phi-3-role"] = r"""{{ bos_token }}{% for message in messages %}{{'<|' + message['role'] + '|>' + '
' + message['content'] + '<|end|>
' }}{% endfor %}{% if add_generation_prompt and messages[-1]['role'] != 'assistant' %}{{- '<|assistant|>
' -}}{% endif %}"""

TEMPLATES["phi-4"] = r"""{% for message in messages %}{% if (message['role'] == 'system') %}{{'<|im_start|>system<|im_sep|>' + message['content'] + '<|im_end|>'}}{% elif (message['role'] == 'user') %}{{'<|im_start|>user<|im_sep|>' + message['content'] + '<|im_end|>'}}{% elif (message['role'] == 'assistant') %}{{'<|im_start|>assistant<|im_sep|>'}}{% generation %}{{message['content'] + '<|im_end|>'}}{% endgeneration %}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"""

TEMPLATES["qwen-2.5"] = r"""{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are a helpful assistant of somebody.' }}
    {%- endif %}
    {{- "\n\n# Tools\n\n<tools>" }}
    {%- for tool in tools %}
        {{- "\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\n</tools><|im_end|>\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>system\nYou are a helpful assistant of somebody.<|im_end|>\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}
            {{- '\n' + message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\n<tool_call>\n{"name": "' }}
            {{- tool_call.name }}
            {{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\n<tool_response>\n' }}
        {{- message.content }}
        {{- '\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""

TEMPLATES["qwen-3"] = r"""{%- if tools %}
    {{- raise_exception('no tools') }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {%- if loop.last or (not loop.last and reasoning_content) %}
                {{- '<|im_start|>' + message.role + '\n<think>\n' + reasoning_content.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
            {%- else %}
                {{- '<|im_start|>' + message.role + '\n' + content }}
            {%- endif %}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}"""

TEMPLATES["smollm-3"] = r"""{# Defaults #}
{%- if enable_thinking is not defined -%}
{%- set enable_thinking = true -%}
{%- endif -%}
{# Mode #}
{%- if enable_thinking -%}
  {%- set reasoning_mode = "/think" -%}
{%- else -%}
  {%- set reasoning_mode = "/no_think" -%}
{%- endif -%}
{{- "<|im_start|>system\n" -}}
{%- if messages[0].role == "system" -%}
  {%- set system_message = messages[0].content -%}
  {%- if "/no_think" in system_message -%}
    {%- set reasoning_mode = "/no_think" -%}
  {%- elif "/think" in system_message -%}
    {%- set reasoning_mode = "/think" -%}
  {%- endif -%}
  {%- set custom_instructions = system_message.replace("/no_think", "").replace("/think", "").rstrip() -%}
{%- endif -%}
{%- if "/system_override" in system_message -%}
  {{- custom_instructions.replace("/system_override", "").rstrip() -}}
  {{- "<|im_end|>\n" -}}
{%- else -%}
  {{- "## Metadata\n\n" -}}
  {{- "Knowledge ends: June 2025\n" -}}
  {%- set today = strftime_now("%d %B %Y") -%}
  {{- "Today is: " ~ today ~ "\n" -}}
  {{- "Reasoning: " + reasoning_mode + "\n\n" -}}
  {{- "## Instructions\n\n" -}}
  {%- if custom_instructions -%}
    {{- custom_instructions + "\n\n" -}}
  {%- elif reasoning_mode == "/think" -%}
    {{- "You think before you answer.\n\n" -}}
  {%- else -%}
    {{- "You answer at once.\n\n" -}}
  {%- endif -%}
  {{- "<|im_end|>\n" -}}
{%- endif -%}
{# Turns #}
{%- for message in messages -%}
    {%- set content = message.content if message.content is string else "" -%}
    {%- if message.role == "user" -%}
        {{ "<|im_start|>" + message.role + "\n"  + content + "<|im_end|>\n" }}
    {%- elif message.role == "assistant" -%}
        {% generation %}
        {%- if reasoning_mode == "/think" -%}
            {{ "<|im_start|>assistant\n" + content.lstrip("\n") + "<|im_end|>\n" }}
        {%- else -%}
            {{ "<|im_start|>assistant\n" + "<think>\n\n</think>\n" + content.lstrip("\n") + "<|im_end|>\n" }}
        {%- endif -%}
        {% endgeneration %}
    {%- elif message.role == "tool" -%}
    {{ "<|im_start|>" + "user\n"  + content + "<|im_end|>\n" }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {%- if reasoning_mode == "/think" -%}
        {{ "<|im_start|>assistant\n" }}
    {%- else -%}
        {{ "<|im_start|>assistant\n" + "<think>\n\n</think>\n"  }}
    {%- endif -%}
{%- endif -%}
"""

TEMPLATES["granite"] = r"""{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set system_message = "Knowledge ends: April 2024.\nToday: " + strftime_now('%B %d, %Y') + ".\nYou are an assistant." %}
    {%- if tools and documents %}
        {%- set system_message = system_message + " Tools and documents." %}
    {%- elif tools %}
        {%- set system_message = system_message + " Tools." %}
    {%- elif documents %}
        {%- set system_message = system_message + " Documents." %}
    {%- endif %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- '<|start_of_role|>system<|end_of_role|>' + system_message + '<|end_of_text|>\n' }}
{%- if documents %}
    {%- for document in documents %}
        {{- 'Document ' + loop.index | string + '\n' }}
        {{- document['text'] }}
        {%- if not loop.last %}
            {{- '\n\n'}}
        {%- endif%}
    {%- endfor %}
{%- endif %}
{%- for message in loop_messages %}
    {{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + message['content'] + '<|end_of_text|>\n' }}
    {%- if loop.last and add_generation_prompt %}
        {{- '<|start_of_role|>assistant' }}
            {%- if controls %}
                {{- ' ' + controls | tojson()}}
            {%- endif %}
        {{- '<|end_of_role|>' }}
    {%- endif %}
{%- endfor %}"""

TEMPLATES["olmo-2"] = r"""{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}{{ '<|system|>
' + message['content'] + '
' }}{% elif message['role'] == 'user' %}{{ '<|user|>
' + message['content'] + '
' }}{% elif message['role'] == 'assistant' %}{% if not loop.last %}{{ '<|assistant|>
'  + message['content'] + eos_token + '
' }}{% else %}{{ '<|assistant|>
'  + message['content'] + eos_token }}{% endif %}{% endif %}{% if loop.last and add_generation_prompt %}{{ '<|assistant|>
' }}{% endif %}{% endfor %}"""

TEMPLATES["deepseek"] = r"""{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{% set ns = namespace(is_first=false, is_tool=false, is_output_first=true, system_prompt='', is_first_sp=true) %}{%- for message in messages %}{%- if message['role'] == 'system' %}{%- if ns.is_first_sp %}{% set ns.system_prompt = ns.system_prompt + message['content'] %}{% set ns.is_first_sp = false %}{%- else %}{% set ns.system_prompt = ns.system_prompt + '\n\n' + message['content'] %}{%- endif %}{%- endif %}{%- endfor %}{{ bos_token }}{{ ns.system_prompt }}{%- for message in messages %}{%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}{{'<｜User｜>' + message['content']}}{%- endif %}{%- if message['role'] == 'assistant' and 'tool_calls' in message %}{%- set ns.is_tool = false -%}{%- for tool in message['tool_calls'] %}{{ tool['type'] }}{%- endfor %}{%- endif %}{%- if message['role'] == 'assistant' and 'tool_calls' not in message %}{%- if ns.is_tool %}{{'<｜tool▁outputs▁end｜>' + message['content'] + '<｜end▁of▁sentence｜>'}}{%- set ns.is_tool = false -%}{%- else %}{% set content = message['content'] %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}{%- endif %}{%- endif %}{%- endfor -%}{% if ns.is_tool %}{{'<｜tool▁outputs▁end｜>'}}{% endif %}{% if add_generation_prompt and not ns.is_tool %}{{'<｜Assistant｜><think>\n'}}{% endif %}"""

TEMPLATES["vicuna"] = r"""{%- set sep = [' ', eos_token] -%}
{%- set who = {'user': 'USER', 'assistant': 'ASSISTANT'} -%}
{%- for message in messages -%}
{%- if message.role in who -%}
{{ who[message.role] ~ ': ' ~ message.content|trim ~ sep[loop.index0 % 2] }}
{%- else -%}
{{ message.content | trim }}{{ sep[0] }}
{%- endif -%}
{%- endfor -%}
{{ 'ASSISTANT:' if add_generation_prompt }}"""

TEMPLATES["alpaca"] = r"""{% if messages[0]['role'] == 'system' %}{% set system_message = messages[0]['content'] | trim + '

' %}{% set messages = messages[1:] %}{% else %}{% set system_message = '' %}{% endif %}{{ bos_token + system_message }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '### Instruction:
' + message['content'] | trim + '

' }}{% elif message['role'] == 'assistant' %}{{ '### Response:
' + message['content'] | trim + eos_token + '

' }}{% endif %}{% if loop.last and message['role'] == 'user' and add_generation_prompt %}{{ '### Response:
' }}{% endif %}{% endfor %}"""

TEMPLATES["macro"] = r"""{%- macro turn(role, content, close='<|end|>') -%}
<|{{ role }}|>{{ content | trim }}{{ close }}
{%- endmacro -%}
{%- macro first_words(text, n=2) -%}
{{ text.split()[:n] | join(' ') }}
{%- endmacro %}
{%- for m in messages -%}
{{ turn(m.role, m.content) if not loop.last else turn(role=m.role, content=m.content, close='<|last|>') }} {# words #}
{{- first_words(m.content) | upper }}/{{ first_words(m.content, n=1) }}
{% endfor %}
{{ turn('assistant', '', '') if add_generation_prompt }}"""

TEMPLATES["neighbours"] = r"""{% for message in messages if message.role != 'system' %}
{% if loop.previtem is defined and loop.previtem.role == message.role %}
{% continue %}
{% endif %}
{% if loop.index > 4 %}{% break %}{% endif %}
{{ loop.index }}/{{ loop.length }} {{ loop.revindex0 }} {{ message.role | capitalize }}: {{ message.content }}{{ '' if loop.nextitem is defined else ' [end]' }}
{% else %}
nobody spoke
{% endfor %}
"""

TEMPLATES["filters"] = r"""{%- set roles = messages | map(attribute='role') | list -%}
{{ roles | join(', ') }}|{{ roles | unique | join('+') }}|{{ roles | first }}|{{ roles | last }}|{{ roles | length }}
{% set users = messages | selectattr('role', 'equalto', 'user') | list %}
{% set others = messages | rejectattr('role', 'in', ['user', 'system']) | list %}
{{ users | length }} {{ others | length }} {{ (users + others)[-1].content | default('none') | title }}
{{ missing | default('nothing') }} {{ '' | default('empty', true) }} {{ messages[0].content | replace('a', 'A') | lower | string }}
{{ messages | tojson }}
{{ messages[0] | tojson(indent=2) }}
{{ [1, 2.5, none, true, 'it\'s "q"', {'k': [()]}] }} {{ {'b': 1, 'a': 2} | dictsort }} {{ {'b': 1}.items() | list }} {{ [3, 1, 2] | sort | reverse | list }}
{% for key, value in messages[0].items() %}{{ key }}={{ value }};{% endfor %}

{{ messages[0].get('role') }} {{ messages[0].get('name', 'unnamed') }} {{ '12' | int + 3 }} {{ 'x' | int }} {{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 2 * 3.0 }} {{ 'ab' * 3 }}
{{ messages[0].content | indent(2) }} {{ messages[0].content.splitlines() }} {{ 'a,b,,c'.split(',') }} {{ 'a,b,c'.split(',', 1) }} {{ ' a  b '.split() }} {{ 'a.b.c'.rsplit('.', 1) }}
{{ ['x', '', 'y'] | select | list }} {{ [1, 2, 3, 4] | select('odd') | list }} {{ [1, 2, 3] | reject('equalto', 2) | list }} {{ ['a', 'b'] | map('upper') | list }}
"""

TEMPLATES["expressions"] = r"""{%- set x = messages[0].content -%}
{{ x[0] }}{{ x[-1] }}{{ x[1:3] }}{{ x[::-1] }}{{ x[:-1] }}{{ x[::2] }} {{ x | length }} {{ 1 < 2 < 3 }} {{ 1 < 2 > 5 }} {{ not x }} {{ x and 'yes' or 'no' }}
{{ 'a' in x }} {{ 'a' not in x }} {{ x == x }} {{ x != '' }} {{ 'assistant' in ['user', 'assistant'] }} {{ 'role' in messages[0] }}
{{ 'one' if x == 'never' else 'two' if x is string else 'three' }} {{ x is not none }} {{ y is undefined }} {{ none is none }} {{ 3 is odd }} {{ 4 is divisibleby 2 }} {{ messages is sequence }} {{ messages[0] is mapping }} {{ 2.5 is number }} {{ true is boolean }}
{{ "tab\there \u00e9 \x41 \\ \q" 'joined' }} {{ 1000 if false }} {{ 1e3 }} {{ (1, 2) }} {{ (1,) }} {{ [] }} {{ {} }} {{ none }} {{ true and false }}
{{ 'ab'.startswith(('x', 'a')) }} {{ 'ab'.endswith('b') }} {{ 'aXb'.upper().lower() }} {{ 'hello wORLD'.title() }} {{ 'hello'.capitalize() }} {{ '--a--'.strip('-') }} {{ 'aaa'.replace('a', 'b', 2) }}
{% set a, b = 1, 2 %}{{ a + b }} {% set block %} {{ x }}! {% endset %}[{{ block | trim }}] {{ range(3) | list }} {{ range(1, 10, 4) | list }} {{ 10 - 2 - 3 }} {{ (2 + 3 * 4) ~ 'z' }}
"""

TEMPLATES["white-space"] = """  {% if true %}
  kept
    {%- if messages %} tight {%- endif %}
  {%+ if true %} plus {% endif +%}
  {% endif %}

{# comment #}
   {#- stripped -#}
text {{ 'a' -}}   
   {{- 'b' }} c\r
{% raw %}{{ not run }} {% if %}{% endraw %}

  {% for m in messages %}
  * {{ m.role }}
  {% endfor %}  
end

"""

CONVERSATIONS = [
    [("user", "Hello, how are you?")],
    [("system", "Be brief. /no_think"), ("user", "  What is 2+2?\n"), ("assistant", " 4 \n"), ("user", "And 3+3?")],
    [("user", "Tell me a joke"), ("assistant", "<think>\nHm, a joke.\n</think>\n\nWhy did the chicken..."), ("user", "Why?"),
     ("assistant", "<think>\nso\n</think>\n\nTo get to the other side")],
    [("system", "Antworte auf Deutsch: äöü 🙂"), ("user", "ça va? \"quoted\" 'single' \\ back\ttab\nline two"),
     ("assistant", "{\"json\": [1, 2]}")],
    [("user", "first"), ("user", "second in a row")],
    [("system", ""), ("user", "a")],
    [("assistant", "I begin"), ("user", "banana [/INST] <|im_end|> </s> {{ 7 * 7 }}")],
    [("user", "call"), ("tool", "result 1"), ("tool", "result 2"), ("assistant", "done")],
]


def main():
    env = environment()
    out = []
    for name, source in TEMPLATES.items():
        template = env.from_string(source)
        cases = []
        for i, conversation in enumerate(CONVERSATIONS):
            for prompt in (False, True):
                messages = [{"role": role, "content": content} for role, content in conversation]
                try:
                    text = template.render(messages=messages, add_generation_prompt=prompt, tools=None, documents=None,
                                           bos_token=BOS, eos_token=EOS)
                    cases.append({"conversation": i, "prompt": prompt, "text": text})
                except (jinja2.exceptions.TemplateError, TypeError):
                    cases.append({"conversation": i, "prompt": prompt, "error": True})
        out.append({"name": name, "template": source, "cases": cases})
    result = {"now": NOW, "bos": BOS, "eos": EOS, "templates": out,
              "conversations": [[{"role": r, "content": c} for r, c in conversation] for conversation in CONVERSATIONS]}
    path = Path(__file__).parent / "chat" / "renderings.json"
    path.write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n")
    print(f"{path}: {len(out)} templates, {sum(len(t['cases']) for t in out)} renderings, {path.stat().st_size} bytes")


if __name__ == "__main__":
    import os
    os.environ["TZ"] = "UTC"
    time.tzset()
    main()
